"""Streams, events, copies and counters; what eager and lazy mode mean."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import simaccel as sim

pytestmark = pytest.mark.usefixtures("device")


def pinned(value: int = 0, nbytes: int = 1000) -> torch.Tensor:
    return torch.full((nbytes,), value, dtype=torch.uint8).pin_memory()


def test_accelerator_face():
    assert torch.accelerator.current_accelerator() == torch.device("sim")
    assert torch.accelerator.device_count() == 1
    stream = torch.Stream("sim")
    with stream:
        assert torch.accelerator.current_stream() == stream
    assert torch.accelerator.current_stream() == torch.sim.default_stream()
    assert torch.sim.current_stream() == torch.sim.default_stream()


def test_streams_come_from_a_pool_of_32():
    assert [torch.Stream("sim").stream_id for _ in range(33)] == [*range(1, 33), 1]


def test_eager_runs_by_itself_and_query_turns_true():
    event = torch.Event("sim")
    torch.ones(10, device="sim").add_(1)
    event.record()
    deadline = time.monotonic() + 10
    while not event.query():
        assert time.monotonic() < deadline
    assert torch.accelerator.current_stream().query()


def test_lazy_runs_only_what_a_wait_needs():
    sim.configure(mode="lazy")
    first, second = torch.Stream("sim"), torch.Stream("sim")
    events = []
    for stream in (first, second):
        with stream:
            torch.ones(10, device="sim").add_(1)
        events.append(torch.Event("sim"))
        events[-1].record(stream)
    time.sleep(0.02)
    assert [event.query() for event in events] == [False, False]
    events[1].synchronize()
    assert [event.query() for event in events] == [False, True]


def test_lazy_wait_runs_what_it_depends_on():
    sim.configure(mode="lazy")
    first, second, event = torch.Stream("sim"), torch.Stream("sim"), torch.Event("sim")
    with first:
        x = torch.ones(10, device="sim")
        event.record()
    second.wait_event(event)
    with second:
        y = x + 1
        second.synchronize()
    assert event.query()
    assert y.sum().item() == 20


def test_lazy_mode_shows_a_host_read_that_came_too_early():
    sim.configure(mode="lazy", races="off")
    x, host = torch.full((4,), 5.0, device="sim"), torch.empty(4, pin_memory=True)
    host.copy_(x, non_blocking=True)
    assert host.isnan().all()
    torch.accelerator.synchronize()
    assert host.tolist() == [5.0] * 4


def test_change_of_mode_runs_what_is_enqueued():
    sim.configure(mode="lazy")
    event = torch.Event("sim")
    torch.ones(10, device="sim").add_(1)
    event.record()
    sim.configure(mode="eager")
    assert event.query()


def test_copies_are_counted(mode):
    slot = torch.zeros(1000, dtype=torch.uint8, device="sim")
    torch.accelerator.synchronize()
    host = pinned()
    before = sim.counters()
    slot.copy_(host, non_blocking=True)
    slot[:10].copy_(host[:10])
    slot.copy_(torch.zeros(1000, dtype=torch.uint8), non_blocking=True)
    host[:20].copy_(slot[:20], non_blocking=True)
    slot[:500].copy_(slot[500:])
    after = sim.counters()

    def grown(name: str) -> int:
        return getattr(after, name) - getattr(before, name)

    assert (grown("h2d_copies"), grown("h2d_bytes")) == (3, 2010)
    assert (grown("d2h_copies"), grown("d2h_bytes")) == (1, 20)
    assert (grown("d2d_copies"), grown("d2d_bytes")) == (1, 500)
    assert (grown("pageable_copies"), grown("pageable_bytes")) == (1, 1000)
    assert (grown("blocking_copies"), grown("blocking_copy_syncs")) == (2, 2)


def test_host_syncs_are_counted_per_thread(mode):
    x, event = torch.ones(4, device="sim"), torch.Event("sim")
    event.record()
    sim.reset()
    event.record()

    def wait():
        event.synchronize()
        x.sum().item()

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    torch.accelerator.synchronize()
    torch.accelerator.current_stream().synchronize()
    torch.nonzero(x)
    counters = sim.counters()
    assert (counters.event_syncs, counters.device_syncs, counters.stream_syncs) == (1, 1, 1)
    assert counters.item_syncs == 2
    assert counters.host_syncs == 5
    assert counters.host_syncs_here == 3
    assert counters.host_syncs_of(thread) == 2


def test_copy_that_changes_dtype_or_layout(mode):
    host = torch.arange(12.0).view(3, 4)
    assert torch.equal(host.to("sim", torch.bfloat16).cpu(), host.bfloat16())
    assert torch.equal(
        host.pin_memory().to("sim", torch.half, non_blocking=True).cpu(), host.half()
    )
    assert torch.equal(host.t().to("sim").cpu(), host.t())
    target = torch.zeros(4, 3, device="sim").t()
    target.copy_(host.pin_memory(), non_blocking=True)
    assert torch.equal(target.cpu(), host)


def test_host_number_may_change_after_the_op_was_enqueued():
    sim.configure(mode="lazy")
    factor = torch.tensor(2.0)
    y = torch.ones(3, device="sim") * factor
    factor.fill_(5.0)
    assert y.tolist() == [2.0] * 3


def test_mixed_devices_are_refused_as_on_cuda():
    x = torch.ones(3, device="sim")
    for other in (torch.ones(3), torch.ones(3, device="meta")):
        with pytest.raises(RuntimeError, match="device"):
            x + other


def test_failing_kernel_is_raised_by_the_next_wait():
    x = torch.ones(4, device="sim")
    x.index_add_(0, torch.tensor([9], device="sim"), torch.ones(1, device="sim"))
    with pytest.raises(RuntimeError, match="simulated device operation failed"):
        torch.accelerator.synchronize()


def test_many_threads_at_once(mode):
    errors = []

    def work(seed: int):
        try:
            with torch.Stream("sim"):
                x = torch.full((50,), float(seed), device="sim")
                for _ in range(50):
                    x = x * 1.0 + 0.0
                assert x.sum().item() == 50 * seed
        except (AssertionError, RuntimeError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []


# ---- whole processes ----------------------------------------------------------------------------

PRELUDE = """
import threading, torch
import simaccel as sim
sim.ensure()
"""


def run_process(script: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(Path(sim.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


LEFT_BEHIND = """
threading.Thread(target=lambda: torch.ones(3, device="sim").sum().item()).start()
sim.configure(mode="lazy")
x = torch.ones(10, device="sim") + 1
raise SystemExit(0)
"""
STILL_RUNNING = """
sim.configure(clock="real")
sim.compute(1000.0)
threading.Thread(target=torch.accelerator.synchronize, daemon=True).start()
threading.Thread(target=sim.advance_host, args=(1000.0,), daemon=True).start()
"""


@pytest.mark.parametrize("script", [LEFT_BEHIND, STILL_RUNNING], ids=["left", "running"])
def test_process_ends(script):
    finished = run_process(script)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""


def test_forked_child_is_told():
    finished = run_process(
        """
import os
x = torch.ones(3, device="sim")
torch.accelerator.synchronize()
child = os.fork()
if child == 0:
    try:
        x + 1
    except RuntimeError as error:
        os._exit(0 if "forked child" in str(error) else 1)
    os._exit(2)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    assert finished.returncode == 0, finished.stderr
