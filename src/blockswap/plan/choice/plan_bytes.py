"""The chosen option as a plan with exact bytes: tiers, slots, staging, what moves in a forward."""

from collections.abc import Sequence
from dataclasses import replace

from ...layout.slab import align_up
from ..inputs.slot_size import serving_bytes
from ..inputs.unit_sizes import Facts, UnitFacts
from ..swap_plan import PlannedUnit, SwapPlan, Tier
from .budgets import Question
from .options import Option
from .tiers import Staging


def build_plan(question: Question, option: Option, slots: int) -> SwapPlan:
    """The plan that streams `option.streamed` through at most `slots`; nothing is said in it."""
    facts, room, streamed = question.facts, question.room, option.streamed
    tiers = room.tiers(streamed)
    staging = staging_of(question, streamed)
    units = planned_units(facts, dict(zip((unit.name for unit in streamed), tiers, strict=True)))
    visiting = [unit for unit in units if unit.tier != "resident"]
    slots = min(slots, len(streamed))
    return measured(
        facts,
        SwapPlan(
            device=facts.device,
            units=units,
            slots=slots,
            slot_bytes=serving_bytes(facts, max((u.slab_bytes for u in visiting), default=0)),
            prefetch=max(slots - 1, 0),
            rest_bytes=facts.rest_bytes,
            decode_bytes=_decode_bytes(streamed, tiers),
            device_bytes=0,
            reserve_bytes=0,
            pinned_bytes=_pinned_bytes(question, room.ram_bytes(streamed, tiers)),
            staging_buffers=staging.buffers,
            staging_bytes=staging.buffer_bytes,
            copied_bytes_per_forward=0,
            read_bytes_per_forward=0,
            sentences=(),
        ),
    )


def staging_of(question: Question, streamed: Sequence[UnitFacts]) -> Staging:
    """The staging buffers of the plan that streams these."""
    room = question.room
    tiers = room.tiers(streamed)
    ram_bytes = room.ram_bytes(streamed, tiers)
    pageable_bytes = ram_bytes - _pinned_bytes(question, ram_bytes)
    exact = room.staging(streamed, tiers, pageable_bytes=pageable_bytes)
    wide = replace(exact, buffer_bytes=serving_bytes(question.facts, exact.buffer_bytes))
    budget = question.ram_budget_bytes
    return wide if budget is None or ram_bytes + wide.nbytes <= budget else exact


def planned_units(facts: Facts, tiers: dict[str, Tier]) -> tuple[PlannedUnit, ...]:
    """Every unit of the model in its tier; those not named stay."""
    return tuple(planned_unit(unit, tiers.get(unit.name, "resident")) for unit in facts.units)


def planned_unit(unit: UnitFacts, tier: Tier) -> PlannedUnit:
    """The unit in its tier, with the bytes that it has there."""
    sizes = {
        "resident": unit.resident_bytes,
        "ram": unit.ram_slab_bytes,
        "disk": unit.disk_slab_bytes or 0,
    }
    return PlannedUnit(unit.name, tier, sizes[tier])


def _decode_bytes(streamed: tuple[UnitFacts, ...], tiers: tuple[Tier, ...]) -> int:
    pairs = zip(streamed, tiers, strict=True)
    sizes = (u.decode_bytes if tier == "disk" else u.ram_decode_bytes for u, tier in pairs)
    return max(sizes, default=0)


def _pinned_bytes(question: Question, ram_bytes: int) -> int:
    budget = question.ram_budget_bytes
    return ram_bytes if budget is None else min(ram_bytes, budget)


def measured(facts: Facts, plan: SwapPlan) -> SwapPlan:
    """The plan with what follows from its units and buffers.

    Device bytes are rest, residents, slots and decode buffer, each rounded; in a forward every
    streamed unit moves, unless all fit in the slots: then they are still there when the next comes.
    """
    residents = [unit.slab_bytes for unit in plan.units if unit.tier == "resident"]
    sizes = [plan.rest_bytes, plan.decode_bytes, *residents, *[plan.slot_bytes] * plan.slots]
    visiting = [unit for unit in plan.units if unit.tier != "resident"]
    moving = visiting if plan.slots < len(visiting) else []
    return replace(
        plan,
        device_bytes=sum(align_up(size, facts.granularity) for size in sizes),
        copied_bytes_per_forward=0 if facts.on_host else sum(u.slab_bytes for u in moving),
        read_bytes_per_forward=sum(u.slab_bytes for u in moving if u.tier == "disk"),
    )


def whole_bytes(facts: Facts) -> int:
    """Bytes of the model with every unit resident, each rounded as the device allocator does."""
    sizes = [facts.rest_bytes, *(unit.resident_bytes for unit in facts.units)]
    return sum(align_up(size, facts.granularity) for size in sizes)
