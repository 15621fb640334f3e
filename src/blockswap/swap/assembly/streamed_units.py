"""How a streamed unit is built: views in every slot, its transfer, its weights between runs."""

from collections.abc import Sequence

import torch

from ...adapters.live import LiveUnit
from ...layout.slab import pack
from ...layout.values import Leaf
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
from .device_slabs import values_from
from .parts import Parts
from .unpinned import PageableSource


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


def resting_on(unit: LiveUnit, homes: Sequence[torch.Tensor]) -> Binding:
    """The unit's places with host views of its leaves as its idle tensors."""
    return Binding([t.places for t in unit.tensors], values_from(unit.tensors, homes))


def idle_binding(unit: LiveUnit) -> Binding:
    """The unit's places with what hangs there now as its idle tensors."""
    return Binding([t.places for t in unit.tensors], [t.tensor for t in unit.tensors])
