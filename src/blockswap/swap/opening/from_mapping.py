"""Opening weights that are mapped from their file: which are copied to pinned RAM, which are not.

The mapped tensors stay as they are: they hang in the model between the runs of their block, and
closing only frees the copies. What goes beyond the pinned bytes that are allowed has no copy: its
pages are read through the mapping, as the system keeps or reads them, each time the block runs.
"""

from collections.abc import Callable, Sequence

import torch

from ...adapters.live import LiveUnit
from ...adapters.recast import is_recast
from ...layout.slab import pack
from ...plan import SwapPlan
from ...store.ram import RamStore
from ...stream.units.transfer import StagedCopy
from ...stream.units.unit import StreamedUnit
from ...units import format_bytes
from ..assembly.device_slabs import host_leaves, values_from
from ..assembly.parts import Parts
from ..assembly.streamed_units import idle_binding, ram_unit, unit_views
from ..assembly.unpinned import PageableSource, ensure_staging
from .from_memory import UNLIMITED


def copy_mapped(
    parts: Parts, plan: SwapPlan, pin_bytes: int, count_pinned: Callable[[int], None]
) -> dict[str, StreamedUnit]:
    """Streams the plan's units from copies in pinned memory, at most `pin_bytes` of them.

    `count_pinned` is told what was pinned, and on undo that it is given back.
    """
    names = set(plan.streamed)
    units = [unit for unit in parts.live.units if unit.layout.name in names]
    copied, left = _divided(units, pin_bytes)
    layouts = [unit.layout for unit in copied]
    # The arena's chunks are a little larger than what is in them.
    store = RamStore(layouts, lender=parts.device, pin_budget=pin_bytes if left else UNLIMITED)
    streamed = {}
    for index, unit in enumerate(copied):
        parts.undo.callback(store.give_back, index)
        store.fill(index, host_leaves(unit.tensors))
    pinned = store.pinned_bytes
    parts.undo.callback(count_pinned, -pinned)
    count_pinned(pinned)
    ensure_staging(parts, store, plan.slot_bytes)
    for index, unit in enumerate(copied):
        streamed[unit.layout.name] = ram_unit(parts, store, index, unit, idle_binding(unit))
    if left:
        _tell(parts, left, plan.slot_bytes)
    return streamed | {unit.layout.name: _through_the_mapping(parts, unit) for unit in left}


def _divided(units: Sequence[LiveUnit], pin_bytes: int) -> tuple[list[LiveUnit], list[LiveUnit]]:
    """The units to copy, and those to read through the mapping.

    A unit that is cast on the way is copied whatever it takes: its bytes are not in the file.
    """
    copied, left, pinned = [], [], 0
    for unit in units:
        nbytes = pack(unit.layout.leaves).nbytes
        if is_recast(unit) or pinned + nbytes <= pin_bytes:
            pinned += nbytes
            copied.append(unit)
        else:
            left.append(unit)
    return copied, left


def _through_the_mapping(parts: Parts, unit: LiveUnit) -> StreamedUnit:
    slab = pack(unit.layout.leaves)
    runs = [
        (_bytes_of(leaf), offset)
        for leaf, offset in zip(host_leaves(unit.tensors), slab.offsets, strict=True)
        if leaf.numel()
    ]
    views = unit_views(unit.layout.leaves, slab.offsets, parts.pool)
    binding = idle_binding(unit)
    values = tuple(binding.hanging(values_from(unit.tensors, leaves)) for leaves in views)
    transfer = StagedCopy(parts.pool, PageableSource(runs), ((0, slab.nbytes),), parts.recorder)
    return StreamedUnit(binding, transfer, values)


def _bytes_of(leaf: torch.Tensor) -> torch.Tensor:
    """The memory of a dense tensor as it lies there, uint8 `[bytes]`."""
    flat = leaf.as_strided((leaf.numel(),), (1,))
    return flat.view(torch.uint8)


def _tell(parts: Parts, left: Sequence[LiveUnit], slot_bytes: int) -> None:
    parts.pool.add_staging(slot_bytes)
    nbytes = sum(unit.layout.nbytes for unit in left)
    parts.pool.sentences.append(
        f"{len(left)} streamed blocks ({format_bytes(nbytes)}) are beyond the memory that may be "
        "pinned: they are read through the file's mapping each time they run"
    )
