"""A model on a disk that can be spoilt, and whether it gave back all that it had taken."""

import gc
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import forward, reference, skeleton
from disk_seam import Disk

from blockswap import BlockSwapArgs, open_transformer
from engine_seams import collect_pools, wait_for_readers


@dataclass
class Bench:
    """A model on a disk that can be spoilt. `owners`: which units a read at a byte is for."""

    path: Path
    device: torch.device
    disk: Disk
    owners: dict[int, list[str]]
    content: bytes
    stamp: os.stat_result
    model: Any = None

    def open(self, **args: Any) -> Any:
        # Not a dictionary: in those 0 means automatic, as in other packs.
        wanted = BlockSwapArgs(**{"blocks_to_swap": 5, "prefetch_blocks": 1, **args})
        self.model = open_transformer(
            self.path, wanted, device=self.device, skeleton=skeleton("mini")
        )
        return self.model

    def forward(self) -> torch.Tensor:
        with torch.no_grad():
            return forward(self.model, "mini", self.device)

    def assert_right(self) -> None:
        for _ in range(2):
            assert torch.equal(self.forward(), reference("mini", self.device))

    def place(self, where: str) -> int:
        """The byte of a read of a forward; the model must have been opened with all streamed."""
        self.owners.clear()
        self.assert_right()
        places = sorted(self.owners)
        assert len(places) > 5, "some block takes several reads"
        return {"first": places[0], "middle": places[len(places) // 2], "last": places[-1]}[where]

    def heal(self) -> None:
        """The cause is gone: the disk reads, and the file is what it was."""
        self.disk.heal()
        if self.model is not None:
            # What was read before would pass for what is there after: the stamp is forged below.
            wait_for_readers(self.model.blockswap._streamer._pool)
        with self.path.open("r+b") as file:
            file.write(self.content)
            file.truncate()
        os.utime(self.path, ns=(self.stamp.st_atime_ns, self.stamp.st_mtime_ns))


@contextmanager
def memory_given_back(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slots and staging buffers are gone at the end, and on the simulator every byte there was."""
    pools = collect_pools(monkeypatch)
    gc.collect()
    before = held_by(device)
    yield
    memory = [weakref.ref(slot.memory) for pool in pools for slot in pool.slots]
    memory += [weakref.ref(c) for pool in pools for buffer in pool.staging for c in buffer.chunks]
    pools.clear()
    gc.collect()
    assert [kept for kept in memory if kept() is not None] == []
    assert held_by(device) == before


def held_by(device: torch.device) -> tuple[int, ...]:
    """Bytes of the device and pinned ones, where somebody counts them."""
    if device.type == "cpu":
        return ()
    import simaccel

    counters = simaccel.counters()
    return counters.device_bytes, counters.pinned_bytes
