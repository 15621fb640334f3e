"""`make_plan`: numbers in, one immutable `SwapPlan` out."""

from dataclasses import replace

from ..errors import PlanError
from ..layout.slab import align_up
from ..selection import BlockSwapArgs, Selection
from ..units import format_bytes, format_bytes_at_least
from .choose import Choice, Question, choose, question_of
from .facts import Facts, UnitFacts
from .values import PlannedUnit, SwapPlan, Tier
from .words import memory_warning, ram_sentences, slot_sentences, summary


def make_plan(facts: Facts, selection: Selection, args: BlockSwapArgs) -> SwapPlan:
    """Decides what stays, what is streamed, from where and through how many slots.

    The decision depends on its arguments alone. It is within the budgets given; more budget never
    means fewer residents; streamed units lie as evenly between residents as the candidates and
    their sizes allow. Without a budget and with exact candidates, precisely those are streamed.
    `staging_bytes` of the plan is the size of one staging buffer, as `slot_bytes` is of one slot;
    `pinned_bytes` is what the arena may pin, staging not counted.
    Raises PlanError, with the least budget that would do, if nothing fits.
    """
    question = question_of(facts, selection, args)
    if facts.on_host and not facts.from_checkpoint:
        plan, said = _plan_in_place(question)
    else:
        choice = choose(question)
        plan, said = _plan_streaming(question, choice)
    sentences = (summary(facts, plan), *selection.sentences, *said)
    return replace(plan, sentences=sentences)


def _plan_streaming(question: Question, choice: Choice) -> tuple[SwapPlan, tuple[str, ...]]:
    """Turns the chosen option into a plan, and says what it means."""
    facts, room, streamed = question.facts, question.room, choice.option.streamed
    tiers = room.tiers(streamed)
    ram_bytes = room.ram_bytes(streamed, tiers)
    pinned_bytes = _pinned_bytes(question, ram_bytes)
    staging = room.staging(streamed, tiers, pageable_bytes=ram_bytes - pinned_bytes)
    units = _planned(facts, dict(zip((unit.name for unit in streamed), tiers, strict=True)))
    visiting = [unit for unit in units if unit.tier != "resident"]
    slots = min(choice.slots, len(streamed))
    # Blocks that all fit in the slots are still there when the next forward comes.
    moving = visiting if slots < len(visiting) else []
    plan = _measured(
        facts,
        SwapPlan(
            device=facts.device,
            units=units,
            slots=slots,
            slot_bytes=max((unit.slab_bytes for unit in visiting), default=0),
            prefetch=max(slots - 1, 0),
            rest_bytes=facts.rest_bytes,
            decode_bytes=_decode_bytes(streamed, tiers),
            device_bytes=0,
            reserve_bytes=choice.reserve_bytes,
            pinned_bytes=pinned_bytes,
            staging_buffers=staging.buffers,
            staging_bytes=staging.buffer_bytes,
            copied_bytes_per_forward=0 if facts.on_host else sum(u.slab_bytes for u in moving),
            read_bytes_per_forward=sum(u.slab_bytes for u in moving if u.tier == "disk"),
            sentences=(),
        ),
    )
    said = (
        *choice.sentences,
        *slot_sentences(question, choice),
        *ram_sentences(question, plan, staging),
        *memory_warning(question, choice),
    )
    return plan, said


def _planned(facts: Facts, tiers: dict[str, Tier]) -> tuple[PlannedUnit, ...]:
    return tuple(_planned_unit(unit, tiers.get(unit.name, "resident")) for unit in facts.units)


def _planned_unit(unit: UnitFacts, tier: Tier) -> PlannedUnit:
    sizes = {
        "resident": unit.resident_bytes,
        "ram": unit.ram_slab_bytes,
        "disk": unit.disk_slab_bytes or 0,
    }
    return PlannedUnit(unit.name, tier, sizes[tier])


def _decode_bytes(streamed: tuple[UnitFacts, ...], tiers: tuple[Tier, ...]) -> int:
    pairs = zip(streamed, tiers, strict=True)
    return max((unit.decode_bytes for unit, tier in pairs if tier == "disk"), default=0)


def _pinned_bytes(question: Question, ram_bytes: int) -> int:
    budget = question.args.ram_budget_bytes
    return ram_bytes if budget is None else min(ram_bytes, budget)


def _measured(facts: Facts, plan: SwapPlan) -> SwapPlan:
    """The plan with its device bytes: rest, residents, slots and decode buffer, each rounded."""
    residents = [unit.slab_bytes for unit in plan.units if unit.tier == "resident"]
    sizes = [plan.rest_bytes, plan.decode_bytes, *residents, *[plan.slot_bytes] * plan.slots]
    return replace(plan, device_bytes=sum(align_up(size, facts.granularity) for size in sizes))


def _plan_in_place(question: Question) -> tuple[SwapPlan, tuple[str, ...]]:
    """A loaded model on the CPU: its blocks lie where they are used, so nothing moves."""
    facts, limit = question.facts, question.args.vram_budget_bytes
    whole = sum(
        align_up(size, facts.granularity)
        for size in (facts.rest_bytes, *(unit.resident_bytes for unit in facts.units))
    )
    if limit is not None and whole > limit:
        raise PlanError(
            f"vram_budget={format_bytes(limit)} was asked, {facts.label} is loaded and takes at "
            f"least {whole} bytes ({format_bytes_at_least(whole)}) on {facts.device}: open it from "
            "its checkpoint to stream it in less, or give it that much"
        )
    streamed = question.candidates if question.exact else ()
    plan = SwapPlan(
        device=facts.device,
        units=_planned(facts, dict.fromkeys((unit.name for unit in streamed), "ram")),
        slots=0,
        slot_bytes=0,
        prefetch=0,
        rest_bytes=facts.rest_bytes,
        decode_bytes=0,
        device_bytes=whole,
        reserve_bytes=0,
        pinned_bytes=0,
        staging_buffers=0,
        staging_bytes=0,
        copied_bytes_per_forward=0,
        read_bytes_per_forward=0,
        sentences=(),
    )
    return plan, _in_place_sentences(question, whole)


def _in_place_sentences(question: Question, whole: int) -> tuple[str, ...]:
    said = ["on the CPU blocks are used where they lie: nothing is copied or pinned"]
    budget = question.args.ram_budget_bytes
    if budget is not None and whole > budget:
        said.append(
            f"ram_budget={format_bytes(budget)} cannot be kept, the loaded model takes "
            f"{format_bytes(whole)}: open it from its checkpoint to stream it in less"
        )
    return tuple(said)
