"""Which option becomes the plan: exactly what was asked, what a budget allows, or what is free.

asked                      limit on the device                        chosen
a list or a count          none                                       exactly those streamed
a budget                   the budget                                 the fastest that fits
nothing, a host's grant    the grant                                  the fastest that fits
nothing, accelerator       0.9 x free - reserve                       the fastest that fits
nothing, CPU + checkpoint  none                                       all candidates streamed

While speeds are not known, the option with most residents is taken for the fastest. What a known
workload needs beside weights and slots comes out of the limit; without one a reserve does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...units import format_bytes
from .budgets import Question, automatic_limit
from .fastest import fastest_fit
from .options import Fit, Option, best_fit, floor_of
from .refusals import refusal


@dataclass(frozen=True, slots=True)
class Choice:
    """The option taken, the slots it may use, bytes left to activations, and why."""

    option: Option
    slots: int
    reserve_bytes: int = 0
    sentences: tuple[str, ...] = ()


def choose(question: Question) -> Choice:
    """The choice for a model that is copied or read into slots. Raises PlanError."""
    budget = question.device_budget
    if budget is not None:
        return _within_budget(question, *budget)
    facts = question.facts
    if question.exact:
        return Choice(question.all_streamed(), question.slots)
    if facts.on_host:
        said = (
            "no budget was given: what may be streamed is read from the checkpoint as it is needed"
        )
        return Choice(question.all_streamed(), question.slots, sentences=(said,))
    if facts.granted_bytes is not None:
        return _within_grant(question, facts.granted_bytes)
    if facts.device_free_bytes is None:
        said = f"{facts.device} does not tell its free memory: all that may be streamed is streamed"
        return Choice(question.all_streamed(), question.slots, sentences=(said,))
    return _within_free(question, facts.device_free_bytes)


def fit_in(question: Question, limit_bytes: int) -> Fit | None:
    """The best of what is offered within `limit_bytes` of weights and slots, or None."""
    if question.speeds is None:
        return best_fit(question.offered(), limit_bytes, question.slots)
    return fastest_fit(question, limit_bytes, question.speeds)


def _within_budget(question: Question, limit: int, name: str) -> Choice:
    offered = question.offered()
    asked = f"{name}={format_bytes(limit)}"
    fit = fit_in(question, limit - question.reserve_bytes)
    if fit is None:
        raise refusal(question.facts, offered, question.foresight, f"{asked} was asked")
    said = _budget_sentences(question, offered, fit, (limit, asked))
    return Choice(fit.option, fit.slots, question.reserve_bytes, said)


def _budget_sentences(
    question: Question, offered: Sequence[Option], fit: Fit, budget: tuple[int, str]
) -> tuple[str, ...]:
    limit, asked = budget
    used_bytes = fit.option.device_bytes(fit.slots) + question.reserve_bytes
    used = format_bytes(used_bytes)
    said = []
    if question.facts.on_host and question.args.ram_budget_bytes:
        said.append(
            "on the CPU vram_budget and ram_budget speak of the same memory, the smaller counts, "
            "and as many candidates as fit it stay in memory"
        )
    more = [option for option in offered if option.residents > fit.option.residents]
    if question.speeds is None and more and fit.slots == question.slots:
        least = min(option.device_bytes(fit.slots) for option in more)
        missing = least + question.reserve_bytes - limit
        said.append(
            f"{asked} is binding: {used} is used, one more resident needs {format_bytes(missing)} "
            "more"
        )
    elif not fit.option.streamed:
        said.append(f"{asked} holds the whole model ({used}): nothing needs to be streamed")
    if question.foresight is None:
        said.append(f"{asked} covers weights and slots: activations come on top of it")
    return tuple(said)


def _within_grant(question: Question, granted: int) -> Choice:
    """Automatic under an application that has counted activations and other models already."""
    offered = question.offered()
    device = question.facts.device
    fit = fit_in(question, granted)
    if fit is not None:
        said = f"{format_bytes(granted)} is granted to weights and slots on {device}"
        return Choice(fit.option, fit.slots, sentences=(said,))
    floor = floor_of(offered)
    said = (
        f"{format_bytes(granted)} is granted to weights and slots on {device}, less than the "
        f"{format_bytes(floor.device_bytes(1))} that are needed at least: all that helps is "
        "streamed through 1 slot"
    )
    return Choice(floor, 1, sentences=(said,))


def _within_free(question: Question, free: int) -> Choice:
    """Automatic on an accelerator: leaves a tenth unused, and a reserve for activations."""
    known = question.foresight is not None
    limit, reserve = automatic_limit(question, free)
    offered = question.offered()
    device = question.facts.device
    fit = fit_in(question, limit)
    if fit is not None:
        kept = "" if known else ", which are not predicted here"
        said = (
            f"{format_bytes(free)} is free on {device}: a tenth is left alone and "
            f"{format_bytes(reserve)} is kept for activations{kept}, so "
            f"{format_bytes(limit)} is for weights and slots"
        )
        return Choice(fit.option, fit.slots, reserve, (said,))
    return _short_of_memory(question, offered, free)


def _short_of_memory(question: Question, offered: Sequence[Option], free: int) -> Choice:
    """Not even the least option leaves a tenth unused beside the reserve.

    Then a known workload gets just what it needs; an unknown one half, or what there is.
    """
    floor = floor_of(offered)
    device = question.facts.device
    if floor.device_bytes(1) + question.reserve_bytes > free:
        raise refusal(
            question.facts, offered, question.foresight, f"{device} has {format_bytes(free)} free"
        )
    room = free // 2 if question.foresight is None else free - question.reserve_bytes
    roomy = [n for n in range(question.slots, 1, -1) if floor.device_bytes(n) <= room]
    slots = roomy[0] if roomy else 1
    left = free - floor.device_bytes(slots)
    said = (
        f"{format_bytes(free)} is free on {device}, too little for the usual reserve: all that "
        f"helps is streamed and {format_bytes(left)} is left to activations"
    )
    return Choice(floor, slots, left, (said,))
