"""The plan after blocks changed residency: its bytes, prefetch and first sentence made anew."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..choice.plan_bytes import measured
from ..inputs.unit_sizes import Facts
from ..sentences.placement import summary
from ..swap_plan import PlannedUnit, SwapPlan, Tier


@dataclass(frozen=True, slots=True)
class Buffers:
    """What a running swap holds beside its residents, in bytes."""

    slots: int
    slot_bytes: int
    decode_bytes: int
    staging_buffers: int
    staging_bytes: int


def replanned(
    plan: SwapPlan, facts: Facts, tiers: Mapping[str, Tier], buffers: Buffers, held_in_ram: int
) -> SwapPlan:
    """`plan` with its units where `tiers` says; `held_in_ram` is what the host keeps for units.

    That is more than what is streamed from RAM: a promoted unit keeps its place there.
    """
    units = tuple(
        PlannedUnit(unit.name, tiers[unit.name], slab_bytes(facts, unit.name, tiers[unit.name]))
        for unit in plan.units
    )
    changed = replace(
        plan,
        units=units,
        slots=buffers.slots,
        slot_bytes=buffers.slot_bytes,
        prefetch=max(buffers.slots - 1, 0) if not plan.slots else plan.prefetch,
        decode_bytes=buffers.decode_bytes,
        pinned_bytes=held_in_ram,
        staging_buffers=buffers.staging_buffers,
        staging_bytes=buffers.staging_bytes,
    )
    changed = measured(facts, changed)
    return replace(changed, sentences=(summary(facts, changed), *plan.sentences[1:]))


def slab_bytes(facts: Facts, name: str, tier: Tier) -> int:
    """Bytes of a unit's slab where it rests."""
    unit = next(unit for unit in facts.units if unit.name == name)
    sizes = {
        "resident": unit.resident_bytes,
        "ram": unit.ram_slab_bytes,
        "disk": unit.disk_slab_bytes or 0,
    }
    return sizes[tier]
