"""The plan in sentences: what is where, what is binding, what would change it, with numbers."""

from collections.abc import Sequence

from ..units import format_bytes
from .choose import Choice
from .facts import Facts, UnitFacts
from .host import Staging
from .options import option_for
from .question import Question
from .values import PlannedUnit, SwapPlan


def summary(facts: Facts, plan: SwapPlan) -> str:
    """One line: how many are streamed, from where, through what; how many stay."""
    streamed = [unit for unit in plan.units if unit.tier != "resident"]
    device_bytes = format_bytes(plan.device_bytes)
    if not streamed:
        return (
            f"all {_units(facts, plan.units)} stay on {facts.device} ({device_bytes} of weights): "
            "nothing is streamed"
        )
    totals, counts = _count_kinds(facts, facts.units), _count_kinds(facts, streamed)
    stay = sum(totals[noun] - counts[noun] for noun in counts)
    verb = "is" if len(streamed) == 1 else "are"
    who = f"{_joined([_share(noun, counts[noun], totals[noun]) for noun in counts])} {verb}"
    if not plan.slots:
        return f"{who} used where they lie in RAM ({device_bytes} with all the rest)"
    slots = f"{plan.slots} slot{'s' * (plan.slots > 1)} of {format_bytes(plan.slot_bytes)}"
    return (
        f"{who} streamed from {_source(plan)} through {slots}; {stay or 'none'} "
        f"stay{'s' * (stay == 1)} on {facts.device} ({device_bytes} of weights and slots)"
    )


def _units(facts: Facts, units: Sequence[PlannedUnit]) -> str:
    """The units counted in people's words: 40 blocks, 15 VACE blocks and 1 embedder."""
    counts = _count_kinds(facts, units)
    return _joined([f"{count} {noun}{'s' * (count != 1)}" for noun, count in counts.items()])


def _share(noun: str, count: int, total: int) -> str:
    """One kind against all of it: 26 of 40 blocks, all 40 blocks, the embedder."""
    if total == 1:
        return f"the {noun}"
    return f"all {total} {noun}s" if count == total else f"{count} of {total} {noun}s"


def _count_kinds(facts: Facts, units: Sequence[PlannedUnit | UnitFacts]) -> dict[str, int]:
    nouns = {"block": "block", "vace": "VACE block"}
    kinds = {unit.name: nouns.get(unit.kind, "embedder") for unit in facts.units}
    found = [kinds[unit.name] for unit in units]
    return {n: found.count(n) for n in ("block", "VACE block", "embedder") if n in found}


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _source(plan: SwapPlan) -> str:
    tiers = [unit.tier for unit in plan.units]
    ram, disk = tiers.count("ram"), tiers.count("disk")
    if not disk:
        return "pinned RAM" if plan.pinned_bytes else "RAM"
    file = "the checkpoint file"
    return f"pinned RAM ({ram}) and {file} ({disk})" if ram else file


def slot_sentences(question: Question, choice: Choice) -> tuple[str, ...]:
    """What the number of slots means for copies."""
    args, streamed = question.args, len(choice.option.streamed)
    said = []
    if not args.use_non_blocking and args.prefetch_blocks:
        said.append(
            f"use_non_blocking=False: prefetch_blocks={args.prefetch_blocks} has no effect, blocks "
            "are copied when they are entered"
        )
    guessed = question.speeds is None  # else the seconds that were found speak for the slots
    if guessed and choice.slots < question.slots:
        said.append(f"there is no room for {question.slots} slots: {choice.slots} must do")
    if 0 < streamed <= choice.slots:
        slots = f"{streamed} slot{'s' * (streamed > 1)}"
        said.append(
            f"{streamed} streamed through {slots} stay there: nothing moves after the first "
            "forward, and streaming so few saves no memory"
        )
    elif guessed and streamed and choice.slots == 1:
        said.append(
            "with 1 slot no copy runs under compute: each block waits for its bytes, 2 slots or "
            "more hide the copies"
        )
    return tuple(said)


def ram_sentences(question: Question, plan: SwapPlan, staging: Staging) -> tuple[str, ...]:
    """Where streamed units rest on the host, and what the RAM budget did."""
    facts = question.facts
    if facts.on_host or not plan.streamed:
        return ()
    if not facts.from_checkpoint:
        needed = sum(unit.slab_bytes for unit in plan.units if unit.tier == "ram")
        if plan.pinned_bytes == needed:
            return ()
        return (
            f"ram_budget={format_bytes(plan.pinned_bytes)} pins less than the "
            f"{format_bytes(needed)} of streamed blocks: the remaining "
            f"{format_bytes(needed - plan.pinned_bytes)} goes through {_buffers(staging)}",
        )
    said = [_checkpoint_sentence(question, plan, staging)]
    wanted, free = plan.pinned_bytes + staging.nbytes, facts.host_free_bytes
    if free is not None and wanted > free:
        said.append(
            f"the plan takes {format_bytes(wanted)} of host memory, {format_bytes(free)} is free: "
            "lower the ram_budget"
        )
    return tuple(said)


def _buffers(staging: Staging) -> str:
    count = f"{staging.buffers} staging buffer{'s' * (staging.buffers != 1)}"
    return f"{count} of {format_bytes(staging.buffer_bytes)}"


def _checkpoint_sentence(question: Question, plan: SwapPlan, staging: Staging) -> str:
    through, budget = _buffers(staging), question.ram_budget_bytes
    if not budget:
        return f"no RAM was given to streamed blocks: they are read through {through}"
    asked = f"ram_budget={format_bytes(budget)}"
    if question.ram_is_automatic:
        free = format_bytes(question.facts.host_free_bytes or 0)
        asked = f"{free} of host memory is free: {format_bytes(budget)} of it"
    tiers = [unit.tier for unit in plan.units]
    ram, disk = tiers.count("ram"), tiers.count("disk")
    if not ram:
        return f"{asked} has no room for a block beside {through}: all are read from the file"
    held = f"{asked} holds {ram} of {ram + disk} streamed ({format_bytes(plan.pinned_bytes)})"
    return f"{held} beside {through}: {disk} are read from the file" if disk else held


def memory_warning(question: Question, choice: Choice) -> tuple[str, ...]:
    """What does not fit although it was asked for exactly, and how many more blocks would.

    What a known workload needs beside weights and slots is part of it.
    """
    facts, option, reserve = question.facts, choice.option, question.reserve_bytes
    needed, free = option.device_bytes(choice.slots) + reserve, facts.free_bytes
    if free is None or needed <= free:
        return ()
    beside = f" with {format_bytes(reserve)} for activations" if reserve else ""
    short = (
        f"the plan needs {format_bytes(needed)} on {facts.device}{beside}, "
        f"{format_bytes(free)} is free"
    )
    if question.device_budget is not None:
        return (f"{short}: lower the budget to {format_bytes(free)}",)
    more = _more_to_stream(question, choice, free - reserve)
    if more is None:
        return (f"{short}: streaming more blocks does not suffice, free memory there",)
    count = sum(unit.kind in ("block", "vace") for unit in option.streamed)
    blocks = f"{more} more block{'s' * (more != 1)}"
    return (f"{short}: stream {blocks} ({count + more} instead of {count})",)


def _more_to_stream(question: Question, choice: Choice, limit_bytes: int) -> int | None:
    """How many further blocks must be streamed to fit `limit_bytes`, the largest first."""
    facts = question.facts
    streamed = list(choice.option.streamed)
    blocks = [u for u in facts.units if u.kind in ("block", "vace") and u not in streamed]
    for more, unit in enumerate(sorted(blocks, key=lambda u: -u.resident_bytes), start=1):
        streamed.append(unit)
        if option_for(facts, question.room, streamed).device_bytes(choice.slots) <= limit_bytes:
            return more
    return None
