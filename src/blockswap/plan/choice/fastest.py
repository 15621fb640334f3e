"""How the fastest fit is searched where speeds are known; ties go to more slots, then residents.

No forward is faster than its bound, and the bound of an option is known without walking through
its timeline. So options are looked at in the order of their bounds, and the search ends when the
next bound is no better than what was found. Where an option does not reach its bound, residents
are moved by one place while that makes it faster; of a few unequal blocks every set is tried.
What an option takes depends on the option alone and not on the budget: so more budget never means
a slower plan.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Self

from ..inputs.foresight import Speeds
from ..inputs.unit_sizes import Facts, UnitFacts
from .budgets import AUTOMATIC_SLOTS, Question
from .options import Fit, Option, option_for
from .tiers import HostRoom
from .timeline import Timeline

# Times closer than this are the same: then more slots win, which bear a late copy better, and
# then more residents.
_DIGITS = 9
_NEAR = 1 + 1e-6
_FEW = 12  # every set of so many blocks can be looked at in a second


@dataclass(frozen=True, slots=True)
class _Rated:
    """A choice and what counts in comparing it: seconds first, then slots, then residents.

    Each bit of `streamed` is a candidate.
    """

    seconds: float
    streamed: int
    slots: int
    key: tuple[float, int, int]

    @classmethod
    def of(cls, seconds: float, streamed: int, slots: int, *, candidates: int) -> Self:
        rounded = float(f"{seconds:.{_DIGITS}g}")
        moved = streamed.bit_count()
        # Where every streamed block has a slot to itself nothing moves, and nothing is ever late.
        counted = AUTOMATIC_SLOTS if slots >= moved else slots
        return cls(seconds, streamed, slots, (rounded, -counted, moved - candidates))


def fastest_fit(question: Question, limit_bytes: int, speeds: Speeds) -> Fit | None:
    """The fit whose forward takes least, or None if nothing fits `limit_bytes`."""
    search = question.known.of(_Terms.of(question, speeds))
    fits = search.within(limit_bytes, _slots_to_try(question))
    if not fits:  # what was asked for does not fit: as many slots as do
        fits = search.within(limit_bytes, tuple(range(question.slots, 0, -1)))
    best: _Rated | None = None
    for bound in fits:
        if best is not None and bound.key >= best.key:
            break
        found = search.rated(bound.streamed, bound.slots)
        if found.seconds > bound.seconds * _NEAR:
            found = search.improved(found)
        if best is None or found.key < best.key:
            best = found
    return None if best is None else Fit(search.option(best.streamed), best.slots)


def _slots_to_try(question: Question) -> tuple[int, ...]:
    """The number that was asked for, else every one."""
    asked = question.args.copies_ahead is not None
    return (question.slots,) if asked else tuple(range(question.slots, 0, -1))


@dataclass(frozen=True, slots=True)
class _Terms:
    """What the seconds of an option depend on: the same for every budget."""

    facts: Facts
    room: HostRoom
    candidates: tuple[UnitFacts, ...]
    ram_budget_bytes: int | None
    speeds: Speeds
    question: Question = field(compare=False)

    @classmethod
    def of(cls, question: Question, speeds: Speeds) -> Self:
        about = (question.facts, question.room, question.candidates, question.ram_budget_bytes)
        return cls(*about, speeds, question)

    def make(self) -> "_Search":
        return _Search(self.question, self.speeds)


class _Search:
    """Prices choices on the timeline, each once."""

    def __init__(self, question: Question, speeds: Speeds) -> None:
        self._question = question
        self._candidates = question.candidates
        self._timeline = Timeline(question, speeds)
        self._options: dict[int, Option] = {}
        self._bounds: dict[tuple[int, ...], list[tuple[_Rated, int]]] = {}
        self._rated: dict[tuple[int, int], _Rated] = {}
        self._improved: dict[tuple[int, int], _Rated] = {}
        self._offer(speeds)

    def _offer(self, speeds: Speeds) -> None:
        """Of a few unequal blocks every set."""
        candidates, facts, room = self._candidates, self._question.facts, self._question.room
        offered: Iterable[Option] = self._question.offered()
        if len(candidates) <= _FEW and not _alike(candidates, speeds):
            counts = range(len(candidates) + 1)
            sets = (streamed for count in counts for streamed in combinations(candidates, count))
            offered = (option_for(facts, room, streamed) for streamed in sets)
        bits = {unit.name: 1 << at for at, unit in enumerate(candidates)}
        for option in offered:
            self._options[sum(bits[unit.name] for unit in option.streamed)] = option
        self._offered = tuple(self._options)

    def within(self, limit_bytes: int, slots: tuple[int, ...]) -> list[_Rated]:
        """What each choice within the limit cannot beat, the most promising ones first."""
        if slots not in self._bounds:
            self._bounds[slots] = sorted(self._all(slots), key=lambda bound: bound[0].key)
        return [bound for bound, needed in self._bounds[slots] if needed <= limit_bytes]

    def _all(self, slots: tuple[int, ...]) -> Iterator[tuple[_Rated, int]]:
        """Bounds, and the bytes that each choice needs on the device."""
        for streamed in self._offered:
            option = self._options[streamed]
            for count in slots:
                if count == slots[-1] or count <= len(option.streamed):
                    seconds = self._timeline.line(option.streamed, count).bound_seconds()
                    yield self._rate(seconds, streamed, count), option.device_bytes(count)

    def rated(self, streamed: int, slots: int) -> _Rated:
        """What the choice takes."""
        key = streamed, slots
        if key not in self._rated:
            line = self._timeline.line(self._units(streamed), slots)
            self._rated[key] = self._rate(line.timing().step_seconds, streamed, slots)
        return self._rated[key]

    def improved(self, start: _Rated) -> _Rated:
        """The same number of residents in places that are faster and cost no more."""
        key = start.streamed, start.slots
        if key not in self._improved:
            best, found = start, self._better(start)
            while found is not None:
                best, found = found, self._better(found)
            self._improved[key] = best
        return self._improved[key]

    def _better(self, than: _Rated) -> _Rated | None:
        """The first of the neighbours that is faster and costs no more."""
        for streamed in self._neighbours(than.streamed):
            found = self.rated(streamed, than.slots)
            if found.key < than.key and self._bytes(found) <= self._bytes(than):
                return found
        return None

    def _neighbours(self, streamed: int) -> Iterator[int]:
        """A resident candidate and the streamed one beside it, exchanged."""
        count = len(self._candidates)
        for at in range(count):
            pair = 1 << at | 1 << (at + 1) % count
            if (streamed & pair).bit_count() == 1:
                yield streamed ^ pair

    def option(self, streamed: int) -> Option:
        if streamed not in self._options:
            facts, room = self._question.facts, self._question.room
            self._options[streamed] = option_for(facts, room, self._units(streamed))
        return self._options[streamed]

    def _units(self, streamed: int) -> list[UnitFacts]:
        return [unit for at, unit in enumerate(self._candidates) if streamed >> at & 1]

    def _bytes(self, rated: _Rated) -> int:
        return self.option(rated.streamed).device_bytes(rated.slots)

    def _rate(self, seconds: float, streamed: int, slots: int) -> _Rated:
        return _Rated.of(seconds, streamed, slots, candidates=len(self._candidates))


def _alike(candidates: Sequence[UnitFacts], speeds: Speeds) -> bool:
    """Whether it makes no difference which of the candidates stays, but for their order."""
    seconds = {speeds.compute_seconds[unit.name] for unit in candidates}
    forms = {replace(unit, name="", kind="block") for unit in candidates}
    return len(seconds) <= 1 and len(forms) <= 1
