"""Each wait and each record of the engine is needed: with any one taken out, the simulator sees it.

Every test runs its scenario twice: as the engine is, where nothing may be found, and with one
line of it taken out, where a race must be found or the output must differ.
"""

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from cases import fresh, opened
from mutation_scenario import ARGS, Scenario
from torch import nn

from blockswap import open_transformer, swap_blocks
from blockswap.store.readers import Follower, Job
from blockswap.stream.device import Accelerator
from blockswap.stream.engine.streamer import Streamer
from blockswap.stream.pool.pool import Pool
from blockswap.stream.units import transfer
from engine_seams import (
    DeafEvent,
    Gate,
    drop_waits,
    is_event,
    replace_event,
    stall_reads,
    wait_for_readers,
)

STORES = ("ram", "pageable", "disk")
# Two blocks, each in a slot and in a staging buffer of its own: no reader waits for the device, and
# so none orders, as a side effect, what the taken-out line should have ordered.
TWO_BLOCKS = {"blocks": "1,3", "prefetch_blocks": 1}
HOLD_SECONDS = 0.5


@pytest.mark.parametrize("store", STORES)
def test_nothing_is_found_in_the_engine_as_it_is(scenario: Scenario, store: str) -> None:
    assert scenario.forwards(store) == []


@pytest.mark.parametrize("store", STORES)
def test_compute_must_wait_for_ready(
    scenario: Scenario, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = drop_waits(monkeypatch, lambda _, event: is_event(scenario.pools, event, "ready"))
    found = scenario.forwards(store, args=TWO_BLOCKS)
    assert gone
    assert "read-after-write" in found


@pytest.mark.parametrize("store", STORES)
def test_copy_must_wait_for_free(
    scenario: Scenario, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = drop_waits(monkeypatch, lambda _, event: is_event(scenario.pools, event, "free"))
    found = scenario.forwards(store)
    assert gone
    assert "write-after-read" in found


@pytest.mark.parametrize("store", ["pageable", "disk"])
def test_reader_must_wait_until_staging_is_copied(
    scenario: Scenario, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_earlier(self: Any, staging: Any, earlier: Sequence[Job]) -> None:
        for job in earlier:
            job.wait()

    monkeypatch.setattr(transfer.StagedCopy, "_wait_until_writable", only_earlier)
    assert "write-after-read" in scenario.forwards(store)


@pytest.mark.parametrize("removed", [False, True], ids=["as it is", "taken out"])
def test_reader_must_wait_for_the_earlier_job_of_its_staging(
    scenario: Scenario, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks 0 and 2 share a staging buffer; block 0 lies in it, read but not yet copied."""
    if removed:

        def only_copied(self: Any, staging: Any, earlier: Sequence[Job]) -> None:
            if staging.used:
                staging.copied.synchronize()

        monkeypatch.setattr(transfer.StagedCopy, "_wait_until_writable", only_copied)
    gate = Gate(HOLD_SECONDS)
    stall_reads(monkeypatch, after={"blocks.0": gate.hold, "blocks.2": gate.opened.set})
    found = scenario.forwards("disk", count=1)
    assert gate.reached.is_set()
    assert bool(found) is removed


@pytest.mark.parametrize("removed", [False, True], ids=["as it is", "taken out"])
def test_forward_thread_must_wait_for_the_job_before_it_waits_for_ready(
    scenario: Scenario, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has recorded ready while the read is under way, and such a wait is a no-op."""
    if removed:
        monkeypatch.setattr(Follower, "done", property(lambda self: True))
    gate = Gate(HOLD_SECONDS)
    stall_reads(monkeypatch, before={"blocks.1": gate.hold})
    found = scenario.forwards("disk", count=1)
    assert gate.reached.is_set()
    assert bool(found) is removed
    assert not removed or "wait-on-unrecorded-event" in found


@pytest.mark.parametrize(
    ("store", "records"), [("ram", 0), ("ram", 1), ("pageable", 0), ("disk", 0)]
)
def test_ready_must_be_recorded_for_every_copy(
    scenario: Scenario, store: str, records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_waits(monkeypatch, lambda stream, event: False)

    def deafen(pool: Pool) -> None:
        for slot in pool.slots:
            replace_event(slot, "ready", records=records)

    found = scenario.forwards(store, deafen)
    kind = "read-after-write" if records else "wait-on-unrecorded-event"
    assert kind in found


@pytest.mark.parametrize("records", [0, 1], ids=["never", "only once"])
@pytest.mark.parametrize("store", STORES)
def test_free_must_be_recorded_after_every_visit(
    scenario: Scenario, store: str, records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_waits(monkeypatch, lambda stream, event: False)

    def deafen(pool: Pool) -> None:
        for slot in pool.slots:
            replace_event(slot, "free", records=records)

    found = scenario.forwards(store, deafen)
    kind = "write-after-read" if records else "wait-on-unrecorded-event"
    assert kind in found


@pytest.mark.parametrize("store", ["pageable", "disk"])
def test_copied_must_be_recorded_for_every_copy_from_staging(
    scenario: Scenario, store: str
) -> None:
    def deafen(pool: Pool) -> None:
        for staging in pool.staging:
            staging.copied = DeafEvent(staging.copied, records=1)

    assert "write-after-read" in scenario.forwards(store, deafen)


@pytest.mark.parametrize("removed", [False, True], ids=["as it is", "taken out"])
def test_a_copy_whose_record_was_interrupted_must_be_recorded_before_its_buffer_is_filled_anew(
    scenario: Scenario, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes between a copy that the forward thread enqueues and the record behind it."""
    if removed:
        monkeypatch.setattr(transfer.StagedCopy, "_record_copied", lambda self, staging: None)
    x = torch.zeros(2, 16).to(scenario.device)
    with (
        scenario.watched() as found,
        opened("disk", "mini", scenario.device, ARGS, shelf=scenario.shelf) as (model, swap),
        torch.no_grad(),
    ):
        pool = scenario.pools[-1]
        model.blocks[0](x)  # type: ignore[index, operator]
        wait_for_readers(pool)
        swap._streamer._supply.read_ahead()
        wait_for_readers(pool)  # the next ones are in staging, so their copies are enqueued at once
        for staging in pool.staging:
            staging.copied = InterruptedEvent(staging.copied)
        with pytest.raises(KeyboardInterrupt):
            model.blocks[1](x)  # type: ignore[index, operator]
        for staging in pool.staging:
            staging.copied = staging.copied.real
        torn = next(staging for staging in pool.staging if staging.torn)
        swap._streamer._supply.empty_half_loaded()  # as the next entry does first
        other = swap._streamer.units[1].streamed.transfer
        other._read(torn)
        wait_for_readers(pool)
    assert bool(found) is removed


class InterruptedEvent(DeafEvent):
    """A device event at whose record Ctrl-C is pressed."""

    def record(self, stream: Any) -> None:
        raise KeyboardInterrupt


def two_streams(scenario: Scenario, model: nn.Module, orders: list[tuple[int, ...]]) -> list[Any]:
    """Runs blocks on two streams in turn; nothing but the engine orders the two."""
    given = [torch.linspace(-2, 2, 32).reshape(2, 16).to(scenario.device) for _ in orders]
    streams = [torch.Stream(scenario.device) for _ in range(2)]
    torch.accelerator.synchronize()
    outs = []
    for turn, (x, order) in enumerate(zip(given, orders, strict=True)):
        with streams[turn % 2]:
            for index in order:
                x = model.blocks[index](x)  # type: ignore[index]
            outs.append(x)
    wait_for_readers(scenario.pools[-1])
    torch.accelerator.synchronize()
    return [out.cpu() for out in outs]


@pytest.mark.parametrize("removed", [False, True], ids=["as it is", "taken out"])
def test_a_slot_used_on_another_stream_must_stay_covered_by_free(
    scenario: Scenario, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block 0 is read on one stream, then on the other, then overwritten."""
    on_demand = {"blocks_to_swap": 5, "prefetch_blocks": 0}  # else block 0 leaves at once
    if removed:
        drop_waits(
            monkeypatch,
            lambda stream, event: (
                is_event(scenario.pools, event, "free") and stream != scenario.pools[-1].copies
            ),
        )
    with (
        scenario.watched() as found,
        opened("ram", "mini", scenario.device, on_demand, shelf=scenario.shelf) as (model, _),
        torch.no_grad(),
    ):
        two_streams(scenario, model, [(0,), (0, 1)])
    assert ("write-after-read" in found) is removed
    assert removed or found == []


@pytest.mark.parametrize("removed", [False, True], ids=["as it is", "taken out"])
def test_the_decode_buffer_must_be_waited_for_across_streams(
    scenario: Scenario, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block 1 is cast on one stream into the buffer that block 0 still reads on the other."""
    if removed:
        drop_waits(monkeypatch, lambda _, event: event is scenario.pools[-1].decoded)
    with ExitStack() as stack, torch.no_grad():
        found = stack.enter_context(scenario.watched())
        with torch.device("meta"):
            skeleton = fresh("mini").to_empty(device="meta")
        model = open_transformer(
            scenario.shelf.file("mini"),
            ARGS,
            device=scenario.device,
            dtype=torch.bfloat16,
            skeleton=skeleton,
        )
        stack.callback(model.blockswap.close)  # type: ignore[union-attr, operator]
        two_streams(scenario, model, [(0,), (1,)])
    assert ("write-after-read" in found) is removed
    assert removed or found == []


@pytest.mark.parametrize("removed", [False, True], ids=["as it is", "taken out"])
def test_decoded_must_be_recorded_after_every_visit(
    scenario: Scenario, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_waits(monkeypatch, lambda stream, event: False)
    with ExitStack() as stack, torch.no_grad():
        found = stack.enter_context(scenario.watched())
        model = open_transformer(
            scenario.shelf.file("mini"),
            ARGS,
            device=scenario.device,
            dtype=torch.bfloat16,
            skeleton=fresh("mini").to_empty(device="meta"),
        )
        stack.callback(model.blockswap.close)  # type: ignore[union-attr, operator]
        if removed:
            scenario.pools[-1].decoded = DeafEvent(scenario.pools[-1].decoded)
        two_streams(scenario, model, [(0,), (1,)])
    assert ("wait-on-unrecorded-event" in found) is removed
    assert removed or found == []


@pytest.mark.parametrize("removed", [False, True], ids=["as it is", "taken out"])
def test_drain_must_wait_for_copies_that_readers_enqueue_late(
    scenario: Scenario, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is closed while reads run ahead: their copies come after `close` has begun."""
    gate = Gate(5.0)
    drain, synchronize = Streamer.drain, Accelerator.synchronize
    draining: list[bool] = []

    def opening_drain(self: Streamer) -> None:
        draining.append(True)
        gate.opened.set()
        drain(self)
        draining.clear()

    def deaf_while_draining(self: Accelerator) -> None:
        if not (removed and draining):
            synchronize(self)

    monkeypatch.setattr(Streamer, "drain", opening_drain)
    monkeypatch.setattr(Accelerator, "synchronize", deaf_while_draining)
    stall_reads(monkeypatch, before={"blocks.2": gate.hold})
    with scenario.watched() as found:
        model = open_transformer(
            scenario.shelf.file("mini"),
            ARGS,
            device=scenario.device,
            skeleton=fresh("mini").to_empty(device="meta"),
        )
        with torch.no_grad():
            model.blocks[0](torch.zeros(2, 16, device=scenario.device))  # type: ignore[index, operator]
        model.blockswap.close()  # type: ignore[union-attr, operator]
        del model
        gc.collect()
    assert gate.reached.is_set()
    assert bool(found) is removed


@pytest.mark.parametrize("removed", [False, True], ids=["as it is", "taken out"])
def test_close_must_wait_for_work_under_way(
    scenario: Scenario, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last forward still runs on another stream when the memory of its weights goes."""
    with scenario.watched() as found, torch.no_grad():
        context = opened("ram", "mini", scenario.device, ARGS, shelf=scenario.shelf)
        model, _ = context.__enter__()
        x = torch.zeros(2, 16, device=scenario.device)
        stream = torch.Stream(scenario.device)
        torch.accelerator.synchronize()
        with stream:
            model.blocks[0](x)  # type: ignore[index, operator]
        if removed:
            monkeypatch.setattr(Accelerator, "synchronize", lambda self: None)
        context.__exit__(None, None, None)
        del x
    assert bool(found) is removed


class OnlyBlocks(nn.Module):
    """Nothing but blocks: opening copies nothing to the device, so nothing else waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))


@pytest.mark.parametrize("removed", [False, True], ids=["as it is", "taken out"])
def test_opening_must_wait_for_what_it_enqueued(
    scenario: Scenario, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy stream writes into memory that the stream of the opening has just made."""
    synchronize = Accelerator.synchronize
    deaf = [removed]

    def deaf_while_opening(self: Accelerator) -> None:
        if not deaf[0]:
            synchronize(self)

    monkeypatch.setattr(Accelerator, "synchronize", deaf_while_opening)
    x = torch.zeros(2, 16).to(scenario.device)
    model = OnlyBlocks()
    with scenario.watched() as found:
        with swap_blocks(model, {"blocks_to_swap": 4}, device=scenario.device), torch.no_grad():
            deaf[0] = False
            model.blocks[0](x)
    assert ("write-after-write" in found) is removed
    assert removed or found == []
