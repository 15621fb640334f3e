"""Which option becomes the plan: exactly what was asked, what a budget allows, or what is free.

asked                      limit on the device                        chosen
a list or a count          none                                       exactly those streamed
a budget                   the budget                                 most residents that fit
nothing, a host's grant    the grant                                  most residents that fit
nothing, accelerator       0.9 x free - reserve                       most residents that fit
nothing, CPU + checkpoint  none                                       all candidates streamed
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..selection import BlockSwapArgs, Selection
from ..units import MIB, format_bytes
from .facts import Facts, UnitFacts
from .host import HostRoom
from .options import Fit, Option, best_fit, floor_of, option_for, options, refusal

# Prefetch two ahead: where copying takes as long as computing, two slots still wait up to 10 %.
AUTOMATIC_SLOTS = 3
LEAST_RESERVE_BYTES = 512 * MIB


@dataclass(frozen=True, slots=True)
class Choice:
    """The option taken, the slots it may use, bytes left to activations, and why."""

    option: Option
    slots: int
    reserve_bytes: int = 0
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """Everything a choice depends on."""

    facts: Facts
    room: HostRoom
    candidates: tuple[UnitFacts, ...]
    exact: bool
    args: BlockSwapArgs

    @property
    def slots(self) -> int:
        """The slots asked for; three where nothing was asked."""
        ahead = self.args.copies_ahead
        return AUTOMATIC_SLOTS if ahead is None else ahead + 1

    @property
    def device_budget(self) -> tuple[int, str] | None:
        """The limit asked for on the compute device, and its name.

        On the CPU both budgets mean one memory and the smaller counts; a `ram_budget` of 0 means
        there, as elsewhere, that no streamed block rests in RAM.
        """
        budgets = {"vram_budget": self.args.vram_budget_bytes}
        if self.facts.on_host:
            budgets["ram_budget"] = self.args.ram_budget_bytes or None
        given = {name: limit for name, limit in budgets.items() if limit is not None}
        if not given:
            return None
        name = min(given, key=lambda key: given[key])
        return given[name], name

    def all_streamed(self) -> Option:
        return option_for(self.facts, self.room, self.candidates)

    def offered(self) -> list[Option]:
        return list(options(self.facts, self.room, self.candidates))


def question_of(facts: Facts, selection: Selection, args: BlockSwapArgs) -> Question:
    """Gathers what was asked and what is known."""
    names = set(selection.candidates)
    ahead = args.copies_ahead is None or args.copies_ahead > 0
    return Question(
        facts=facts,
        room=HostRoom.of(facts, args.ram_budget_bytes, copies_ahead=ahead),
        candidates=tuple(unit for unit in facts.units if unit.name in names),
        exact=selection.exact,
        args=args,
    )


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


def _within_budget(question: Question, limit: int, name: str) -> Choice:
    offered = question.offered()
    asked = f"{name}={format_bytes(limit)}"
    fit = best_fit(offered, limit, question.slots)
    if fit is None:
        raise refusal(question.facts, offered, f"{asked} was asked")
    said = _budget_sentences(question, offered, fit, (limit, asked))
    return Choice(fit.option, fit.slots, sentences=said)


def _budget_sentences(
    question: Question, offered: Sequence[Option], fit: Fit, budget: tuple[int, str]
) -> tuple[str, ...]:
    limit, asked = budget
    used = format_bytes(fit.option.device_bytes(fit.slots))
    said = []
    if question.facts.on_host and question.args.ram_budget_bytes:
        said.append(
            "on the CPU vram_budget and ram_budget speak of the same memory, the smaller counts, "
            "and as many candidates as fit it stay in memory"
        )
    more = [option for option in offered if option.residents > fit.option.residents]
    if more and fit.slots == question.slots:
        missing = min(option.device_bytes(fit.slots) for option in more) - limit
        said.append(
            f"{asked} is binding: {used} is used, one more resident needs {format_bytes(missing)} "
            "more"
        )
    elif not fit.option.streamed:
        said.append(f"{asked} holds the whole model ({used}): nothing needs to be streamed")
    return (*said, f"{asked} covers weights and slots: activations come on top of it")


def _within_grant(question: Question, granted: int) -> Choice:
    """Automatic under an application that has counted activations and other models already."""
    offered = question.offered()
    device = question.facts.device
    fit = best_fit(offered, granted, question.slots)
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
    reserve = max(LEAST_RESERVE_BYTES, free // 4)
    limit = free * 9 // 10 - reserve
    offered = question.offered()
    device = question.facts.device
    fit = best_fit(offered, limit, question.slots)
    if fit is not None:
        said = (
            f"{format_bytes(free)} is free on {device}: a tenth is left alone and "
            f"{format_bytes(reserve)} is kept for activations, which are not predicted here, so "
            f"{format_bytes(limit)} is for weights and slots"
        )
        return Choice(fit.option, fit.slots, reserve, (said,))
    return _short_of_memory(question, offered, free)


def _short_of_memory(question: Question, offered: Sequence[Option], free: int) -> Choice:
    """Not even the least option leaves the reserve: leave half to activations, or what there is."""
    floor = floor_of(offered)
    device = question.facts.device
    if floor.device_bytes(1) > free:
        raise refusal(question.facts, offered, f"{device} has {format_bytes(free)} free")
    roomy = [n for n in range(question.slots, 1, -1) if floor.device_bytes(n) <= free // 2]
    slots = roomy[0] if roomy else 1
    left = free - floor.device_bytes(slots)
    said = (
        f"{format_bytes(free)} is free on {device}, too little for the usual reserve: all that "
        f"helps is streamed and {format_bytes(left)} is left to activations"
    )
    return Choice(floor, slots, left, (said,))
