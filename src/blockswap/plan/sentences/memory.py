"""Sentences on a plan's memory: slots, RAM tier, what does not fit, how many more to stream."""

from ...units import format_bytes
from ..choice.budgets import Question
from ..choice.decision import Choice
from ..choice.options import option_for
from ..choice.tiers import Staging
from ..inputs.unit_sizes import Facts
from ..swap_plan import SwapPlan


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


def table_sentences(facts: Facts) -> tuple[str, ...]:
    """What is read by rows and so takes no memory."""
    if not facts.table_bytes:
        return ()
    where = "the file" if facts.from_checkpoint else "host memory"
    return (
        f"{format_bytes(facts.table_bytes)} of lookup tables stay in {where}: a forward reads the "
        "rows that it asks for",
    )


def _buffers(staging: Staging) -> str:
    count = f"{staging.buffers} staging buffer{'s' * (staging.buffers != 1)}"
    said = f"{count} of {format_bytes(staging.buffer_bytes)}"
    return said if staging.ranks == 1 else f"{said} in each of {staging.ranks} ranks"


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
