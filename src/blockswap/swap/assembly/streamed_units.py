"""How a streamed unit is built: views in every slot, its transfer, its weights between runs."""

from collections.abc import Sequence

import torch

from ...adapters.live import LiveUnit
from ...decode.unit_decoding import UnitDecoding, plain_form
from ...layout.shares import side_by_side
from ...layout.slab import pack
from ...layout.values import Leaf
from ...store.leaves import view_leaf
from ...stream.pool.pool import Pool
from ...stream.units.binding import Binding
from ...stream.units.decode import Decode
from ...stream.units.transfer import PinnedCopy, Source, StagedCopy, Transfer
from ...stream.units.unit import StreamedUnit
from .device_slabs import values_from
from .parts import Parts
from .unit_store import UnitStore
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
    decoding: UnitDecoding,
    pool: Pool,
) -> tuple[tuple[tuple[torch.Tensor, ...], ...], Decode | None]:
    """What hangs in the model for each slot, and what decodes the unit, if anything must.

    `slots[s]` are the unit's stored arrays in slot s.
    """
    if not decoding.decoded or pool.decode is None:
        return tuple(values_from(unit.tensors, views) for views in slots), None
    slab = pack([form.computed for form in decoding.decoded])
    decoded = [
        view_leaf(pool.decode, at, form.computed)
        for at, form in zip(slab.offsets, decoding.decoded, strict=True)
    ]
    scratch = pool.decode.narrow(0, slab.nbytes, decoding.scratch_bytes)
    values = tuple(values_from(unit.tensors, _mixed(decoding, views, decoded)) for views in slots)
    return values, Decode([decoding.prepare(views, decoded, scratch) for views in slots])


def _mixed(
    decoding: UnitDecoding, stored: Sequence[torch.Tensor], decoded: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The unit's leaves: views of a slot, or of the decode buffer."""
    leaves, at, buffer = [], 0, iter(decoded)
    for form in decoding.forms:
        leaves.append(next(buffer) if form.steps else stored[at])
        at += len(form.stored)
    return leaves


def ram_transfer(parts: Parts, store: UnitStore, index: int, unit: LiveUnit) -> Transfer:
    """How a unit in the RAM store reaches a slot, with the help of other ranks if they give any."""
    runs, pinned = store.runs(index), store.is_pinned(index)
    whole, brought = _from_ram(parts, runs, pinned=pinned), parts.brought
    shares = None if brought is None else brought.shares(sum(m.numel() for m, _ in runs))
    if brought is None or shares is None or not shares.part_bytes or "ram" not in brought.tiers:
        return whole
    own = _from_ram(parts, brought.own_runs(runs, shares), pinned=pinned)
    named = (unit.layout.name, parts.number_of(unit))
    return brought.transfer(own, whole, named, shares, parts.recorder, "ram")


def _from_ram(
    parts: Parts, runs: Sequence[tuple[torch.Tensor, int]], *, pinned: bool
) -> PinnedCopy | StagedCopy:
    """By itself if pinned, else through staging."""
    if pinned:
        return PinnedCopy(parts.pool, runs, parts.recorder)
    source: Source = PageableSource(runs)
    spans = side_by_side((at, memory.numel()) for memory, at in runs)
    return StagedCopy(parts.pool, source, spans, parts.recorder)


def ram_unit(
    parts: Parts,
    store: UnitStore,
    index: int,
    unit: LiveUnit,
    binding: Binding,
    decoding: UnitDecoding | None = None,
) -> StreamedUnit:
    """A unit that rests in the RAM store, ready to be streamed.

    Without a `decoding` it rests there in compute form, else as `decoding.stored`.
    """
    leaves = unit.layout.leaves if decoding is None else decoding.stored
    decoding = decoding or UnitDecoding(tuple(plain_form(leaf, leaf) for leaf in leaves))
    views = unit_views(leaves, store.slab_offsets(index), parts.pool)
    values, decode = decoded_values(unit, views, decoding, parts.pool)
    transfer = ram_transfer(parts, store, index, unit)
    return StreamedUnit(binding, transfer, tuple(map(binding.hanging, values)), decode)


def resting_on(unit: LiveUnit, homes: Sequence[torch.Tensor]) -> Binding:
    """The unit's places with host views of its leaves as its idle tensors."""
    return Binding([t.places for t in unit.tensors], values_from(unit.tensors, homes))


def idle_binding(unit: LiveUnit) -> Binding:
    """The unit's places with what hangs there now as its idle tensors."""
    return Binding([t.places for t in unit.tensors], [t.tensor for t in unit.tensors])
