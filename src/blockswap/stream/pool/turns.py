"""Whose forward comes next among the swaps of one pool: as announced, or as the last time.

A sampler runs one expert of a model for some forwards and then the other, the same way for every
clip of a session:

    high high high ... high | low low low ... low | high high ...
                         ^ the last of its turn: what comes after it are the first units of `low`

A wrong guess costs what a forward out of order costs anywhere in the engine: a stall.
"""

import weakref
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Member(Protocol):
    """What a pool knows of the supply of one of its swaps: the number that it was given."""

    number: int


M = TypeVar("M", bound=Member)


@dataclass(frozen=True, slots=True)
class _Turn(Generic[M]):
    """How many forwards in a row a swap had, and who came after it.

    The pool outlives its swaps, and a model must be able to go while another one uses the pool.
    """

    forwards: int
    successor: weakref.ref[M]


class Turns(Generic[M]):
    """Counts the forwards that each swap has in a row."""

    def __init__(self) -> None:
        self._numbers = 0
        self._turns: dict[int, _Turn[M]] = {}
        self._current: int | None = None
        self._count = 0

    def number(self) -> int:
        """A number for a further swap of the pool; none is given twice."""
        self._numbers += 1
        return self._numbers

    def began(self, supply: M) -> None:
        """A forward of the swap starts."""
        if supply.number == self._current:
            self._count += 1
            return
        if self._current is not None:
            self._turns[self._current] = _Turn(self._count, weakref.ref(supply))
        self._current, self._count = supply.number, 1

    def expect(self, supply: M, forwards: int, successor: M) -> None:
        """After `forwards` forwards in a row of `supply` come those of `successor`."""
        self._turns[supply.number] = _Turn(forwards, weakref.ref(successor))

    def next_after(self, supply: M) -> M:
        """Whose forward comes after the one of `supply` that is under way, or was the last."""
        turn = self._turns.get(supply.number)
        if turn is None or turn.forwards != self._count or supply.number != self._current:
            return supply
        return turn.successor() or supply

    def forget(self, supply: M) -> None:
        """The swap is closed: nobody waits for its forwards any more."""
        self._turns = {
            number: turn
            for number, turn in self._turns.items()
            if number != supply.number and turn.successor() is not supply
        }
        if self._current == supply.number:
            self._current, self._count = None, 0
