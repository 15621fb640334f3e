"""How the fastest fit is searched where speeds are known; ties go to more slots, then residents.

No forward is faster than its bound, and the bound of an option is known without walking through
its timeline. So options are looked at in the order of their bounds, and the search ends when the
next bound is no better than what was found. Where an option does not reach its bound, residents
are moved by one place while that makes it faster; of a few unequal blocks every set is tried.
What an option takes depends on the option alone and not on the budget: so more budget never means
a slower plan.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ..inputs.foresight import Speeds
from ..inputs.unit_sizes import UnitFacts
from ..timing.forward_time import pipeline_of
from .budgets import AUTOMATIC_SLOTS, Question
from .options import Fit, Option, option_for
from .plan_bytes import build_plan

# Times closer than this are the same: then more slots win, which bear a late copy better, and
# then more residents.
_DIGITS = 9
_NEAR = 1 + 1e-6
_FEW = 12  # every set of so many blocks can be looked at in a second


@dataclass(frozen=True, slots=True)
class _Rated:
    """A fit and what counts in comparing it: seconds first, then slots, then residents."""

    seconds: float
    fit: Fit

    @property
    def key(self) -> tuple[float, int, int]:
        rounded = float(f"{self.seconds:.{_DIGITS}g}")
        # Where every streamed block has a slot to itself nothing moves, and nothing is ever late.
        enough = self.fit.slots >= len(self.fit.option.streamed)
        slots = AUTOMATIC_SLOTS if enough else self.fit.slots
        return rounded, -slots, -self.fit.option.residents


def fastest_fit(
    question: Question, offered: Sequence[Option], limit_bytes: int, speeds: Speeds
) -> Fit | None:
    """The fit whose forward takes least, or None if nothing fits `limit_bytes`."""
    if len(question.candidates) <= _FEW and not _alike(question, speeds):
        offered = list(_every_option(question))
    fits = _fits(offered, limit_bytes, _slots_to_try(question))
    if not fits:  # what was asked for does not fit: as many slots as do
        fits = _fits(offered, limit_bytes, range(question.slots, 0, -1))
    search = _Search(question, speeds)
    best: _Rated | None = None
    for bound in sorted((search.bound(fit) for fit in fits), key=lambda rated: rated.key):
        if best is not None and bound.key >= best.key:
            break
        found = search.rated(bound.fit)
        if found.seconds > bound.seconds * _NEAR:
            found = search.improved(found)
        if best is None or found.key < best.key:
            best = found
    return None if best is None else best.fit


def _alike(question: Question, speeds: Speeds) -> bool:
    """Whether it makes no difference which of the candidates stays, but for their order."""
    seconds = {speeds.compute_seconds[unit.name] for unit in question.candidates}
    forms = {replace(unit, name="", kind="block") for unit in question.candidates}
    return len(seconds) <= 1 and len(forms) <= 1


def _every_option(question: Question) -> Iterator[Option]:
    candidates = question.candidates
    for count in range(len(candidates) + 1):
        for streamed in combinations(candidates, count):
            yield option_for(question.facts, question.room, streamed)


def _slots_to_try(question: Question) -> Sequence[int]:
    """The number that was asked for, else every one."""
    asked = question.args.copies_ahead is not None
    return (question.slots,) if asked else range(question.slots, 0, -1)


def _fits(offered: Sequence[Option], limit_bytes: int, slots: Sequence[int]) -> list[Fit]:
    return [
        Fit(option, count)
        for option in offered
        for count in slots
        if count == slots[-1] or count <= len(option.streamed)
        if option.device_bytes(count) <= limit_bytes
    ]


class _Search:
    """Prices fits on the timeline."""

    def __init__(self, question: Question, speeds: Speeds) -> None:
        self._question = question
        self._speeds = speeds

    def bound(self, fit: Fit) -> _Rated:
        """What the fit cannot beat."""
        plan = build_plan(self._question, fit.option, fit.slots)
        line = pipeline_of(plan, self._speeds, on_host=self._question.facts.on_host)
        return _Rated(line.bound_seconds(), fit)

    def rated(self, fit: Fit) -> _Rated:
        """What the fit takes."""
        plan = build_plan(self._question, fit.option, fit.slots)
        line = pipeline_of(plan, self._speeds, on_host=self._question.facts.on_host)
        return _Rated(line.timing().step_seconds, fit)

    def improved(self, start: _Rated) -> _Rated:
        """The same number of residents in places that are faster and cost no more."""
        best, moved = start, True
        while moved:
            moved = False
            for option in self._neighbours(best.fit.option):
                slots = best.fit.slots
                if option.device_bytes(slots) > best.fit.option.device_bytes(slots):
                    continue
                found = self.rated(Fit(option, slots))
                if found.key < best.key:
                    best, moved = found, True
                    break
        return best

    def _neighbours(self, option: Option) -> Iterator[Option]:
        """A resident candidate and the streamed one beside it, exchanged."""
        candidates, streamed = self._question.candidates, set(option.streamed)
        count = len(candidates)
        for at in range(count):
            pair = {candidates[at], candidates[(at + 1) % count]}
            if len(pair & streamed) == 1:
                yield self._option(streamed ^ pair)

    def _option(self, streamed: set[UnitFacts]) -> Option:
        facts, room = self._question.facts, self._question.room
        return option_for(facts, room, [unit for unit in facts.units if unit in streamed])
