"""The steps of opening a loaded model: residents are copied, streamed units move to pinned RAM."""

from ...adapters.adapted import NO_LORAS, InMemory
from ...adapters.live import LiveModel
from ...plan import SwapPlan
from ...selection import BlockSwapArgs
from ...store.tables import TableInMemory
from ...stream.units.resident import Resident
from ...stream.units.unit import StreamedUnit
from ..assembly.device_slabs import hang_on_device, hang_unit, merged_leaves
from ..assembly.parts import Parts
from ..assembly.streamed_units import idle_binding, ram_unit
from ..assembly.table_rows import hang_tables
from ..assembly.unit_store import HostMemory
from ..assembly.unpinned import ensure_staging

UNLIMITED = 1 << 62


def pin_budget(args: BlockSwapArgs) -> int:
    """Most bytes of host memory to pin."""
    return UNLIMITED if args.ram_budget_bytes is None else args.ram_budget_bytes


def place_residents(parts: Parts, loras: InMemory) -> dict[str, Resident]:
    live: LiveModel = parts.live
    device = parts.device.torch_device
    leaves = merged_leaves(live.rest, loras, device)
    hang_on_device(parts.undo, live.rest, leaves, parts.device.allocate)
    hang_tables(parts, live.tables, [TableInMemory(table.tensor) for table in live.tables])
    return {
        unit.layout.name: hang_unit(
            parts.undo, unit.tensors, merged_leaves(unit.tensors, loras, device), parts.device
        )
        for unit in live.units
        if parts.plan.tier_of(unit.layout.name) == "resident"
    }


def rehome(
    parts: Parts, plan: SwapPlan, host: HostMemory, loras: InMemory = NO_LORAS
) -> dict[str, StreamedUnit]:
    """Moves the streamed units to where they rest, one at a time, LoRAs' factors with them."""
    names = set(plan.streamed)
    units = [unit for unit in parts.live.units if unit.layout.name in names]
    store = host.store([loras.layout(unit) for unit in units], host.pin_budget)
    streamed = {}
    for index, unit in enumerate(units):
        parts.undo.callback(store.give_back, index)
        store.adopt(index, loras.tensors(unit))
    ensure_staging(parts, store, plan.slot_bytes)
    for index, unit in enumerate(units):
        binding, decoding = idle_binding(unit), loras.decoding(unit)
        streamed[unit.layout.name] = ram_unit(parts, store, index, unit, binding, decoding)
    return streamed
