"""One test per kind of race: found whatever the timing, told with both accesses, raised early."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

import simaccel as sim

BYTES = 4096

pytestmark = pytest.mark.usefixtures("mode")


def on_device() -> torch.Tensor:
    tensor = torch.zeros(BYTES, dtype=torch.uint8, device="sim")
    torch.accelerator.synchronize()
    return tensor


def pinned() -> torch.Tensor:
    return torch.zeros(BYTES, dtype=torch.uint8, pin_memory=True)


def only_race() -> sim.Race:
    (race,) = sim.races()
    return race


# ---- between two streams ------------------------------------------------------------------------


def test_read_before_the_copy_that_fills_it_is_done():
    slot, host, copies = on_device(), pinned(), torch.Stream("sim")
    with copies:
        slot.copy_(host, non_blocking=True)
    with pytest.raises(RuntimeError, match="read-after-write"):
        slot + 1
    race = only_race()
    assert race.kind == "read-after-write"
    assert race.earlier == sim.Side("copy (host to device)", "stream 1", True, 0, BYTES)
    assert race.later == sim.Side("aten::add", "stream 0", False, 0, BYTES)


def test_copy_into_a_slot_that_is_still_read():
    slot, host, copies = on_device(), pinned(), torch.Stream("sim")
    slot + 1
    with copies, pytest.raises(RuntimeError, match="write-after-read"):
        slot.copy_(host, non_blocking=True)
    assert only_race().earlier.op == "aten::add"
    assert only_race().later.op == "copy (host to device)"


def test_two_streams_write_the_same_bytes():
    slot, other = on_device(), torch.Stream("sim")
    with other:
        slot.fill_(1)
    with pytest.raises(RuntimeError, match="write-after-write"):
        slot.fill_(2)


def test_message_names_ops_streams_bytes_and_label():
    slot, host, copies = on_device(), pinned(), torch.Stream("sim")
    sim.label(slot, "slot 0")
    sim.label(slot[1024:2048], "slot 0, ffn.weight")
    sim.label(copies, "copies")
    slot[1024:2048].view(torch.float32).add_(1)
    with copies, pytest.raises(RuntimeError) as raised:
        slot[1500:].copy_(host[1500:], non_blocking=True)
    message = str(raised.value)
    for words in (
        "race (write-after-read)",
        "'slot 0, ffn.weight'",
        "copy (host to device) on stream 1 'copies' writes bytes [1500, 4096)",
        "aten::add on stream 0 reads bytes [1024, 2048)",
    ):
        assert words in message
    assert sim.races()[0].label == "slot 0, ffn.weight"


def test_views_of_one_slab_are_told_apart():
    slab, host, copies = on_device(), pinned(), torch.Stream("sim")
    slab[:1024].view(torch.float32) + 1
    with copies:
        slab[1024:].copy_(host[1024:], non_blocking=True)
    assert sim.races() == []


def test_events_and_host_waits_order():
    slot, host, copies = on_device(), pinned(), torch.Stream("sim")
    ready, free = torch.Event("sim"), torch.Event("sim")
    compute = torch.accelerator.current_stream()
    for _ in range(3):
        with copies:
            slot.copy_(host, non_blocking=True)
            ready.record()
        compute.wait_event(ready)
        slot + 1
        free.record(compute)
        copies.wait_event(free)
    with copies:
        slot.fill_(3)
    copies.synchronize()
    slot + 1
    assert sim.races() == []


def test_order_is_transitive_over_a_third_stream():
    slot = on_device()
    first, second = torch.Stream("sim"), torch.Stream("sim")
    with first:
        slot.fill_(1)
    second.wait_stream(first)
    torch.accelerator.current_stream().wait_stream(second)
    slot.fill_(2)
    assert sim.races() == []


def test_event_waited_for_before_it_was_recorded_again_orders_only_the_first():
    slot, other, event = on_device(), torch.Stream("sim"), torch.Event("sim")
    event.record(other)
    torch.accelerator.current_stream().wait_event(event)
    with other:
        slot.fill_(1)
        event.record()
    with pytest.raises(RuntimeError, match="write-after-write"):
        slot.fill_(2)


def test_new_allocation_belongs_to_its_stream():
    fresh, other = torch.empty(BYTES, dtype=torch.uint8, device="sim"), torch.Stream("sim")
    with other, pytest.raises(RuntimeError, match="memory may still be in use on stream 0"):
        fresh.fill_(1)
    other.wait_stream(torch.accelerator.current_stream())
    with other:
        fresh.fill_(1)


def test_timed_compute_takes_part():
    slot, host, copies = on_device(), pinned(), torch.Stream("sim")
    with copies:
        slot.copy_(host, non_blocking=True)
    with pytest.raises(RuntimeError, match="block 3 on stream 0 reads"):
        sim.compute(1e-3, reads=[slot], name="block 3")


# ---- memory -------------------------------------------------------------------------------------


def use_on_other_stream_then_free(record: bool) -> None:
    tensor, other = on_device(), torch.Stream("sim")
    with other:
        tensor + 1
    if record:
        tensor.record_stream(other)
    del tensor


def test_free_without_record_stream_is_raised_by_the_next_call():
    use_on_other_stream_then_free(record=False)
    assert only_race().kind == "free-without-record_stream"
    assert only_race().earlier.op == "aten::add"
    with pytest.raises(RuntimeError, match="call record_stream"):
        torch.zeros(1, device="sim")
    torch.zeros(1, device="sim")  # raised once


def test_free_after_record_stream():
    use_on_other_stream_then_free(record=True)
    torch.zeros(1, device="sim")
    assert sim.races() == []


def test_use_after_free():
    tensor = torch.zeros(BYTES, device="sim")
    view = tensor[1:]
    tensor.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="use after free"):
        view + 1
    assert only_race().kind == "use-after-free"


# ---- the host -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda host: host.fill_(7),
        lambda host: host[10:20].copy_(torch.ones(10)),
        lambda host: torch.add(host, 1, out=host),
        sim.host_write,
        lambda host: sim.host_write((host.data_ptr() + 5, 1)),
    ],
    ids=["fill_", "copy_", "out=", "host_write(tensor)", "host_write(range)"],
)
def test_host_overwrites_a_source_in_flight(write):
    slot, host = on_device(), pinned()
    slot.copy_(host, non_blocking=True)
    with pytest.raises(RuntimeError, match=r"write-after-read.*pinned"):
        write(host)
    torch.accelerator.synchronize()
    write(host)


def test_host_write_that_nobody_announced():
    sim.configure(mode="lazy")  # in eager mode it depends on who is faster
    slot, host = on_device(), pinned()
    slot.copy_(host, non_blocking=True)
    host.numpy()[17] = 1
    with pytest.raises(RuntimeError, match="pinned-source-changed"):
        torch.accelerator.synchronize()
    assert only_race().kind == "pinned-source-changed"


@pytest.mark.parametrize(
    "read",
    [
        lambda host: host.sum(),
        lambda host: host[3].item(),
        lambda host: host.clone(),
        sim.host_read,
    ],
    ids=["sum", "item", "clone", "host_read"],
)
def test_host_reads_a_result_before_it_has_arrived(read):
    tensor, host = on_device(), pinned()
    host.copy_(tensor, non_blocking=True)
    with pytest.raises(RuntimeError, match=r"read-after-write.*pinned"):
        read(host)
    torch.accelerator.current_stream().synchronize()
    read(host)


def test_non_blocking_to_cpu_is_not_there_yet():
    tensor = on_device()
    result = tensor.to("cpu", non_blocking=True)
    with pytest.raises(RuntimeError, match="read-after-write"):
        result.sum()


def test_other_bytes_of_the_pinned_buffer_are_free_to_write():
    slot, host = on_device(), pinned()
    slot[:100].copy_(host[:100], non_blocking=True)
    host[100:].fill_(1)
    assert sim.races() == []


def test_event_wait_in_another_thread_counts():
    slot, host, event = on_device(), pinned(), torch.Event("sim")
    slot.copy_(host, non_blocking=True)
    event.record()

    def reader():
        event.synchronize()
        host.fill_(1)

    thread = threading.Thread(target=reader)
    thread.start()
    thread.join()
    assert sim.races() == []


def test_reader_thread_that_does_not_wait():
    slot, host = on_device(), pinned()
    slot.copy_(host, non_blocking=True)
    errors = []

    def reader():
        try:
            host.fill_(1)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=reader)
    thread.start()
    thread.join()
    assert "write-after-read" in errors[0]


# ---- waits for nothing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        lambda event: torch.accelerator.current_stream().wait_event(event),
        lambda event: torch.Stream("sim").wait_event(event),
        lambda event: event.wait(torch.accelerator.current_stream()),
        lambda event: event.synchronize(),
    ],
    ids=["current_stream().wait_event", "stream.wait_event", "event.wait", "event.synchronize"],
)
def test_wait_on_an_event_never_recorded(wait):
    with pytest.raises(RuntimeError, match="never recorded"):
        wait(torch.Event("sim"))
    assert only_race().kind == "wait-on-unrecorded-event"


def test_wait_on_an_event_never_recorded_can_be_listed_or_allowed(mode):
    sim.configure(mode=mode, unrecorded_waits="record")
    torch.Event("sim").synchronize()
    assert only_race().kind == "wait-on-unrecorded-event"
    sim.configure(mode=mode, unrecorded_waits="off")
    sim.reset()
    torch.Event("sim").synchronize()
    assert sim.races() == []


# ---- the option ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("races", "found"), [("record", 1), ("off", 0)])
def test_races_listed_or_not_looked_for(mode, races, found):
    sim.configure(mode=mode, races=races)
    slot, other = on_device(), torch.Stream("sim")
    with other:
        slot.fill_(1)
    slot.fill_(2)
    assert len(sim.races()) == found


def test_failed_op_leaves_nothing_behind():
    slot, other = on_device(), torch.Stream("sim")
    with other:
        slot.fill_(1)
    with pytest.raises(RuntimeError):
        slot.fill_(2)
    torch.accelerator.synchronize()
    assert slot.unique().tolist() == [1]


# ---- telling of them ----------------------------------------------------------------------------


def test_tensors_may_go_while_it_is_told_what_was_found():
    """Making the answer collects garbage, and a tensor in it gives its memory back."""
    sim.configure(races="record", trace=True)
    tensor, others = on_device(), [torch.Stream("sim") for _ in range(2)]
    for stream in others * 50:
        with stream:
            tensor.add_(1)
    before = gc.get_threshold()
    gc.set_threshold(10)
    try:
        for tell in (sim.races, sim.trace, sim.counters) * 20:
            kept = [torch.zeros(1, device="sim")]
            kept.append(kept)
            del kept
            assert tell()
    finally:
        gc.set_threshold(*before)
    torch.accelerator.synchronize()
