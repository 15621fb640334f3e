"""Units as the engine runs them: views of every slot, the way there, and what hangs in between."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...adapters.live import LiveUnit
from ...layout.slab import pack
from ...layout.values import Leaf
from ...store.landing import Landing
from ...store.leaves import view_leaf
from ...store.ram import RamStore
from ...stream.pool.pool import Pool
from ...stream.units.binding import Binding
from ...stream.units.decode import Decode
from ...stream.units.transfer import (
    PinnedCopy,
    Source,
    StagedCopy,
    Transfer,
)
from ...stream.units.unit import StreamedUnit
from ...units import format_bytes
from .device_slabs import values_from
from .parts import Parts


def unit_views(
    leaves: Sequence[Leaf], offsets: Sequence[int], pool: Pool
) -> list[list[torch.Tensor]]:
    """Views of every slot for a unit's leaves; `views[s][i]` is leaf i in slot s."""
    return [
        [view_leaf(slot.memory, at, leaf) for at, leaf in zip(offsets, leaves, strict=True)]
        for slot in pool.slots
    ]


def decoded_values(
    unit: LiveUnit,
    slots: Sequence[Sequence[torch.Tensor]],
    numbers: Sequence[int],
    pool: Pool,
) -> tuple[tuple[tuple[torch.Tensor, ...], ...], Decode | None]:
    """What hangs in the model for each slot, and the decoding of leaves `numbers`, if any."""
    if not numbers or pool.decode is None:
        return tuple(values_from(unit.tensors, views) for views in slots), None
    leaves = [unit.layout.leaves[i] for i in numbers]
    offsets = pack(leaves).offsets
    computed = [view_leaf(pool.decode, at, leaf) for at, leaf in zip(offsets, leaves, strict=True)]
    place = dict(zip(numbers, computed, strict=True))
    mixed = [[place.get(i, view) for i, view in enumerate(views)] for views in slots]
    stored = [[views[i] for i in numbers] for views in slots]
    values = tuple(values_from(unit.tensors, views) for views in mixed)
    return values, Decode(stored, computed)


def ensure_staging(parts: Parts, store: RamStore, slab_bytes: int) -> None:
    """Makes staging for units up to `slab_bytes` where pinning failed against the plan."""
    if not store.pageable_bytes:
        return
    if parts.pool.add_staging(slab_bytes):
        parts.pool.sentences.append(
            f"pinning failed for {format_bytes(store.pageable_bytes)} of streamed blocks: their "
            f"copies go through {len(parts.pool.staging)} staging buffers"
        )


def ram_transfer(parts: Parts, store: RamStore, index: int) -> Transfer:
    """How a unit in the RAM store reaches a slot: by itself if pinned, else through staging."""
    runs = store.runs(index)
    if store.is_pinned(index):
        return PinnedCopy(parts.pool, runs, parts.recorder)
    source: Source = PageableSource(runs)
    nbytes = sum(memory.numel() for memory, _ in runs)
    return StagedCopy(parts.pool, source, nbytes, parts.recorder)


def ram_unit(
    parts: Parts, store: RamStore, index: int, unit: LiveUnit, binding: Binding
) -> StreamedUnit:
    """A unit that rests in the RAM store, in compute form, ready to be streamed."""
    views = unit_views(unit.layout.leaves, store.slab_offsets(index), parts.pool)
    values = tuple(binding.hanging(values_from(unit.tensors, leaves)) for leaves in views)
    return StreamedUnit(binding, ram_transfer(parts, store, index), values)


class PageableSource:
    """A unit in host memory that could not be pinned: reader threads copy it to staging."""

    read_bytes = 0

    def __init__(self, runs: Sequence[tuple[torch.Tensor, int]]) -> None:
        self._runs = list(runs)

    def pieces(self, landing: Landing) -> list[Callable[[], None]]:
        return [
            _HostCopy(memory.narrow(0, start - at, size), base + start)
            for memory, at in self._runs
            for start, size, base in landing.spans(at, memory.numel())
        ]

    def settle(self, landing: Landing) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class _HostCopy:
    memory: torch.Tensor
    address: int

    def __call__(self) -> None:
        torch.frombuffer(
            (ctypes.c_char * self.memory.numel()).from_address(self.address), dtype=torch.uint8
        ).copy_(self.memory)


def resting_on(unit: LiveUnit, homes: Sequence[torch.Tensor]) -> Binding:
    """The unit's places with host views of its leaves as its idle tensors."""
    return Binding([t.places for t in unit.tensors], values_from(unit.tensors, homes))


def idle_binding(unit: LiveUnit) -> Binding:
    """The unit's places with what hangs there now as its idle tensors."""
    return Binding([t.places for t in unit.tensors], [t.tensor for t in unit.tensors])
