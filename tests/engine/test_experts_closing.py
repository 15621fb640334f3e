"""A model is closed while its pool goes on: no file goes from under a read that others share."""

import threading
from pathlib import Path

import pytest
import torch
from expert_pair import experts, run

from blockswap.stream.pool.pool import Pool
from engine_seams import Gate, collect_pools, stall_reads, wait_for_readers


@pytest.mark.parametrize("removed", [False, True], ids=["as it is", "taken out"])
def test_a_file_is_closed_behind_the_reads_of_shared_staging(
    removed: bool, sim_device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the close a unit is read ahead of the next forward, into staging and for no slot yet."""
    pools = collect_pools(monkeypatch)
    gate, armed, stop = Gate(30.0), threading.Event(), Pool.stop_reading

    def hold() -> None:
        if armed.is_set():
            gate.hold()

    def opening_stop(self: Pool) -> None:
        if not removed:
            gate.opened.set()
            stop(self)

    stall_reads(monkeypatch, before={"blocks.3": hold, "blocks.4": hold})
    monkeypatch.setattr(Pool, "stop_reading", opening_stop)
    with experts("disk", "mini", sim_device, {"blocks_to_swap": 6}, tmp_path) as (models, swaps):
        run(models, "a", "mini", sim_device)
        wait_for_readers(pools[-1])
        for staging in pools[-1].staging:
            staging.occupant = None  # what was read ahead so far depends on the forward's timing
        armed.set()
        swaps[0]._streamer._supply.read_ahead()
        assert gate.reached.wait(30), "nothing was read ahead of the slots"
        held = [s.read for s in pools[-1].staging if s.read is not None and not s.read.done]
        assert held
        swaps[0].close()
        gate.opened.set()
        armed.clear()
        assert all(read.wait(30) for read in held)
        errors = [str(read.error) for read in held if read.error is not None]
        if removed:
            assert "was closed while it was being read" in errors[0]
        else:
            assert errors == []
        run(models, "bb", "mini", sim_device)
