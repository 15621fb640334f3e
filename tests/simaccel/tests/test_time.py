"""The virtual clock equals theory, the real one passes."""

from __future__ import annotations

import threading
import time

import pytest
import torch

import simaccel as sim

MB = 1_000_000

pytestmark = pytest.mark.usefixtures("device")


def pinned(nbytes: int) -> torch.Tensor:
    return torch.zeros(nbytes, dtype=torch.uint8, pin_memory=True)


def on_device(nbytes: int) -> torch.Tensor:
    tensor = torch.empty(nbytes, dtype=torch.uint8, device="sim")
    torch.accelerator.synchronize()
    return tensor


def timed_event() -> torch.Event:
    return torch.Event("sim", enable_timing=True)


@pytest.mark.parametrize("mode", ["eager", "lazy"])
def test_copy_takes_bytes_over_bandwidth(mode):
    sim.configure(h2d_gb_s=2, mode=mode)
    host, slot = pinned(MB), on_device(MB)
    begin, end = timed_event(), timed_event()
    begin.record()
    slot.copy_(host, non_blocking=True)
    end.record()
    assert sim.clock.now() == 0
    end.synchronize()
    assert begin.elapsed_time(end) == pytest.approx(0.5, rel=1e-12)
    assert sim.clock.now() == pytest.approx(0.5e-3, rel=1e-12)


def test_pinned_blocking_copy_is_as_fast_but_the_host_waits():
    sim.configure(h2d_gb_s=1)
    on_device(MB).copy_(pinned(MB))
    assert sim.clock.now() == pytest.approx(1e-3, rel=1e-12)


@pytest.mark.parametrize("non_blocking", [False, True])
def test_pageable_copy_is_slow_and_the_host_waits(non_blocking):
    sim.configure(h2d_gb_s=1, pageable_gb_s=0.25)
    on_device(MB).copy_(torch.zeros(MB, dtype=torch.uint8), non_blocking=non_blocking)
    assert sim.clock.now() == pytest.approx(4e-3, rel=1e-12)


def test_copies_of_one_direction_share_an_engine_and_directions_do_not():
    sim.configure(h2d_gb_s=1, d2h_gb_s=1, trace=True)
    host, slots = pinned(3 * MB), on_device(3 * MB)
    for index in range(3):
        part = slice(index * MB, (index + 1) * MB)
        with torch.Stream("sim"):
            if index < 2:
                slots[part].copy_(host[part], non_blocking=True)
            else:
                host[part].copy_(slots[part], non_blocking=True)
    spans = [(r.start_seconds, r.end_seconds) for r in sim.trace()]
    assert spans == [(0, 1e-3), (1e-3, 2e-3), (0, 1e-3)]


def test_a_copy_that_waits_does_not_hold_up_the_engine():
    sim.configure(h2d_gb_s=1, trace=True)
    host, slots = pinned(2 * MB), on_device(2 * MB)
    late, early, event = torch.Stream("sim"), torch.Stream("sim"), torch.Event("sim")
    sim.compute(5e-3)
    event.record()
    late.wait_event(event)
    with late:
        slots[:MB].copy_(host[:MB], non_blocking=True)
    with early:
        slots[MB:].copy_(host[MB:], non_blocking=True)
    assert [r.start_seconds for r in sim.trace()] == [0, 5e-3, 0]


def test_ops_start_after_stream_events_and_host():
    sim.configure(trace=True)
    other, event = torch.Stream("sim"), torch.Event("sim")
    sim.compute(2e-3, name="a")
    event.record()
    sim.clock.advance_host(1e-3)
    with other:
        sim.compute(1e-3, name="b")  # starts when the host enqueues it
        other.wait_event(event)
        sim.compute(1e-3, name="c")  # starts after a
        sim.compute(1e-3, name="d")  # starts after c
    assert [r.start_seconds for r in sim.trace()] == [0, 1e-3, 2e-3, 3e-3]
    assert sim.clock.device_end() == pytest.approx(4e-3)


def test_launch_overhead_and_idle_gaps():
    sim.configure(launch_seconds=1e-3)
    for _ in range(3):
        sim.compute(0.1e-3)
    assert sim.clock.now() == pytest.approx(3e-3)
    assert sim.clock.device_end() == pytest.approx(3.1e-3)
    torch.accelerator.synchronize()
    assert sim.clock.now() == pytest.approx(3.1e-3)


def test_flops_are_counted():
    sim.configure(flops=1e9)
    a, b = torch.ones(10, 20, device="sim"), torch.ones(20, 30, device="sim")
    begin = sim.clock.device_end()
    a @ b
    assert sim.clock.device_end() - begin == pytest.approx(2 * 10 * 20 * 30 / 1e9)
    q = torch.ones(1, 2, 8, 4, device="sim")
    begin = sim.clock.device_end()
    torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert sim.clock.device_end() - begin == pytest.approx(2 * 2 * 2 * 8 * 8 * 4 / 1e9)
    conv = torch.nn.Conv3d(3, 5, (1, 2, 2), stride=(1, 2, 2)).to("sim")
    images = torch.ones(1, 3, 2, 4, 4, device="sim")
    begin = sim.clock.device_end()
    conv(images)
    outputs = 5 * 2 * 2 * 2
    assert sim.clock.device_end() - begin == pytest.approx(2 * outputs * 3 * 4 / 1e9)


def test_memory_bandwidth_bounds_other_ops():
    sim.configure(memory_gb_s=1)
    x = torch.zeros(1000, device="sim")
    torch.accelerator.synchronize()
    begin = sim.clock.now()
    y = torch.empty_like(x)
    torch.add(x, 1, out=y)
    assert sim.clock.device_end() - begin == pytest.approx(8000 / 1e9)


def test_each_thread_has_its_own_now_and_the_disk_is_shared():
    sim.configure(disk_gb_s=1)
    sim.clock.advance_host(1e-3)
    ends = []

    def read():
        ends.append(sim.disk_read(MB))

    for _ in range(2):  # one after the other, so that the order is known
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert ends == pytest.approx([1e-3, 2e-3])
    assert sim.clock.now() == pytest.approx(1e-3)


def test_marks_hand_time_from_thread_to_thread():
    token = []

    def work():
        sim.clock.advance_host(3e-3)
        token.append(sim.clock.mark())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert sim.clock.now() == 0
    sim.clock.join(token[0])
    sim.clock.join(0)  # never backwards
    assert sim.clock.now() == pytest.approx(3e-3)


def test_query_that_returns_true_lets_time_pass():
    sim.compute(1e-3)
    event = torch.Event("sim")
    event.record()
    while not event.query():
        time.sleep(1e-4)
    assert sim.clock.now() == pytest.approx(1e-3)


def test_reset_restarts_all_clocks():
    sim.compute(1.0)
    torch.accelerator.synchronize()
    event = torch.Event("sim")
    event.record()
    sim.reset()
    assert sim.clock.now() == 0
    assert sim.clock.device_end() == 0
    assert event.query()
    assert torch.Stream("sim").stream_id == 1


def test_real_clock_sleeps():
    sim.configure(clock="real", h2d_gb_s=0.005)
    host, slot = pinned(MB), on_device(MB)
    begin, end = timed_event(), timed_event()
    started = time.perf_counter()
    begin.record()
    slot.copy_(host, non_blocking=True)
    end.record()
    enqueued = time.perf_counter() - started
    end.synchronize()
    waited = time.perf_counter() - started
    assert enqueued < 0.15
    assert 0.2 <= waited < 5
    assert 200 <= begin.elapsed_time(end) < 5000
