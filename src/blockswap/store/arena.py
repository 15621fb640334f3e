"""When host memory for streamed blocks is taken, pinned (within a budget) and given back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..errors import PlanError
from ..layout.values import UnitLayout
from ..units import format_bytes
from .leaves import view_leaf
from .packing import Packing, Run, pack_arena


class Lender(Protocol):
    """Who has pinned memory to lend: the device."""

    def pin(self, nbytes: int) -> torch.Tensor | None:
        """A uint8 tensor `[nbytes]` in pinned host memory, or None where pinning fails."""
        ...

    def release_cached_host_memory(self) -> None:
        """Gives pinned memory that nobody uses any more back to the system."""
        ...


@dataclass(slots=True)
class _Chunk:
    nbytes: int
    users: set[int]
    memory: torch.Tensor | None = None
    pinned: bool = False


class Arena:
    """Host memory for the slabs of some units.

    Chunks are made when the first unit in them is taken and dropped when the last is released,
    so filling and emptying the arena unit by unit holds about one unit twice and no more.
    """

    def __init__(
        self,
        units: Sequence[UnitLayout],
        *,
        lender: Lender,
        pin_budget: int,
        unpinned: Callable[[int], torch.Tensor],
    ) -> None:
        self._units = tuple(units)
        self._pageable = unpinned
        self.packing: Packing = pack_arena(self._units)
        self._lender = lender
        self._pin_budget = pin_budget
        self._chunks = [_Chunk(nbytes, set()) for nbytes in self.packing.chunk_bytes]
        for index, packed in enumerate(self.packing.units):
            for run in packed.runs:
                self._chunks[run.chunk].users.add(index)

    @property
    def pinned_bytes(self) -> int:
        """Bytes pinned at this moment, the chunks' unused tails included."""
        return sum(c.nbytes for c in self._chunks if c.memory is not None and c.pinned)

    @property
    def pageable_bytes(self) -> int:
        """Bytes held that could not, or were not allowed to, be pinned."""
        return sum(c.nbytes for c in self._chunks if c.memory is not None and not c.pinned)

    def take(self, index: int) -> list[torch.Tensor]:
        """Host views of the unit's leaves, in leaf order, over memory that is now held."""
        packed = self.packing.units[index]
        for run in packed.runs:
            self._hold(self._chunks[run.chunk])
        return [
            view_leaf(*self._locate(packed.runs, offset, leaf.nbytes), leaf)
            for leaf, offset in zip(self._units[index].leaves, packed.slab.offsets, strict=True)
        ]

    def runs(self, index: int) -> list[tuple[torch.Tensor, int]]:
        """(host bytes, offset in the slab) of each run of the unit: one copy each."""
        return [
            (self._memory(run).narrow(0, run.chunk_offset, run.nbytes), run.slab_offset)
            for run in self.packing.units[index].runs
        ]

    def is_pinned(self, index: int) -> bool:
        """Whether every run of the unit lies in pinned memory."""
        return all(self._chunks[run.chunk].pinned for run in self.packing.units[index].runs)

    def release(self, index: int) -> None:
        """Gives the unit's place up; a chunk without users is dropped."""
        for run in self.packing.units[index].runs:
            chunk = self._chunks[run.chunk]
            chunk.users.discard(index)
            if not chunk.users and chunk.memory is not None:
                chunk.memory = None
                # Now and not at the end: the next unit given back takes memory of its own.
                self._lender.release_cached_host_memory()

    def _hold(self, chunk: _Chunk) -> None:
        if chunk.memory is not None:
            return
        if self.pinned_bytes + chunk.nbytes <= self._pin_budget:
            chunk.memory = self._lender.pin(chunk.nbytes)
            chunk.pinned = chunk.memory is not None
        if chunk.memory is None:
            chunk.memory = self._pageable(chunk.nbytes)

    def _memory(self, run: Run) -> torch.Tensor:
        memory = self._chunks[run.chunk].memory
        assert memory is not None, "a unit's runs are asked for only after take()"
        return memory

    def _locate(
        self, runs: Sequence[Run], slab_offset: int, nbytes: int
    ) -> tuple[torch.Tensor, int]:
        for run in runs:
            inside = slab_offset - run.slab_offset
            if inside >= 0 and inside + nbytes <= run.nbytes:
                return self._memory(run), run.chunk_offset + inside
        return torch.empty(
            0, dtype=torch.uint8, device="cpu"
        ), 0  # an empty leaf of a unit without any bytes


def pageable(nbytes: int) -> torch.Tensor:
    """Host memory as it comes. Raises PlanError where the system refuses it."""
    try:
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu")
    except (RuntimeError, MemoryError) as error:
        raise PlanError(
            f"{format_bytes(nbytes)} of host memory for streamed blocks were "
            "refused by the system: close other programs, or give a smaller ram_budget"
        ) from error
