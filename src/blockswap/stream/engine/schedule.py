"""Which streamed unit is needed next: the expected order, and what is learnt when it differs.

The order is cyclic: after the last unit of one forward comes the first of the next. A unit that
is skipped, repeated or run alone only moves the cursor; the order itself is learnt anew when a
whole forward has shown another one (VACE blocks run interleaved in some implementations). Where
some unit has never run yet, two forwards in a row must have shown the same order: then what never
runs is no longer expected, until it does.
"""

from collections.abc import Iterable, Sequence


class Schedule:
    """A cursor on the expected cyclic order of units (numbers)."""

    def __init__(self, order: Sequence[int], streamed: frozenset[int]) -> None:
        self._units = frozenset(order)
        self._streamed = streamed
        self._observed: list[int] = []
        self._before: tuple[int, ...] = ()
        self._ever: set[int] = set()
        self._order: tuple[int, ...] = ()
        self._after: list[tuple[int, ...]] = []
        self._rest: list[tuple[int, ...]] = []
        self._cursor = -1
        self._adopt(tuple(order))

    @property
    def order(self) -> tuple[int, ...]:
        """The order that is expected now."""
        return self._order

    def begin_forward(self) -> None:
        """A forward of the whole model starts; an order seen once in full is expected again."""
        seen, self._observed = tuple(self._observed), []
        before, self._before = self._before, seen
        self._ever.update(seen)
        if not seen or seen == self._order:
            return
        all_that_run = seen == before and self._ever.issubset(seen)
        if all_that_run or self._units.issubset(seen):
            self._adopt(seen)

    def entered(self, unit: int) -> None:
        """Moves the cursor to the next place in the cycle where `unit` is expected."""
        if len(self._observed) < 4 * len(self._units):
            self._observed.append(unit)
        count = len(self._order)
        for step in range(1, count + 1):
            position = (self._cursor + step) % count
            if self._order[position] == unit:
                self._cursor = position
                return

    def upcoming(self) -> tuple[int, ...]:
        """The streamed units after the cursor, nearest first, each once, one turn of the cycle."""
        return self._after[self._cursor]

    def rest(self) -> tuple[int, ...]:
        """The streamed units after the cursor up to the end of the forward, each once."""
        return self._rest[self._cursor]

    def first(self) -> tuple[int, ...]:
        """The streamed units of a forward from its start, each once."""
        return self._after[-1]

    def stream(self, units: Iterable[int]) -> None:
        """From now on these units are streamed; the expected order and the cursor stay."""
        self._streamed = frozenset(units)
        self._look_ahead()

    def _adopt(self, order: tuple[int, ...]) -> None:
        self._order = order
        self._cursor = len(order) - 1
        self._look_ahead()

    def _look_ahead(self) -> None:
        order = self._order
        turns = [(order[i + 1 :], order[: i + 1]) for i in range(len(order))]
        self._rest = [self._streamed_of(rest) for rest, _ in turns]
        self._after = [self._streamed_of(rest + wrapped) for rest, wrapped in turns]

    def _streamed_of(self, units: Iterable[int]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(unit for unit in units if unit in self._streamed))
