"""A plan after some of its units have changed place: the same value, with exact bytes again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..units import format_bytes
from .build import measured
from .correct import Correction
from .facts import Facts
from .values import PlannedUnit, SwapPlan, Tier
from .words import summary

# The report tells the last few changes and counts the others.
KEPT_SENTENCES = 6


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


def correction_sentence(forward: int, correction: Correction, plan: SwapPlan) -> str:
    """What was measured and what followed; `plan` is the one after it."""
    when = "the first forward" if forward == 1 else f"forward {forward}"
    room = format_bytes(abs(correction.room_bytes))
    stay = f"({len(plan.residents)} of {len(plan.units)})"
    if correction.promote:
        count = len(correction.promote)
        more = f"{count} more block{'s stay' if count > 1 else ' stays'}"
        return f"after {when} {room} were still free: {more} {stay}"
    gone = _leave(len(correction.demote))
    if correction.room_bytes < 0:
        return f"{when} used {room} more than is meant to be used: {gone} {stay}"
    return f"{when} left only {room} free: {gone} {stay}"


def retry_sentence(
    forward: int, missing_bytes: int | None, released: Sequence[str], plan: SwapPlan
) -> str:
    """How an out-of-memory was survived; `plan` is the one after it."""
    asked = "" if missing_bytes is None else f" (it asked for {format_bytes(missing_bytes)} more)"
    ran = f"forward {forward} ran out of memory{asked}"
    if not released:
        return f"{ran}: what it held was dropped and it was run again"
    stay = f"({len(plan.residents)} of {len(plan.units)})"
    return f"{ran}: {_leave(len(released))} {stay}, and it was run again"


def recent(sentences: Sequence[str]) -> tuple[str, ...]:
    """The last few sentences, with a count of those left out."""
    left_out = len(sentences) - KEPT_SENTENCES
    if left_out <= 0:
        return tuple(sentences)
    return (f"{left_out} earlier changes of the plan", *sentences[left_out:])


def _leave(count: int) -> str:
    return f"{count} block{'s no longer stay' if count > 1 else ' no longer stays'}"
