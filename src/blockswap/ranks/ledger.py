"""What the ranks of a host say of each gather before it: in shared memory, a row for each rank.

    head        |from which entry on each rank brings units alone|whose doing|why|
    rank 0      |process|entries said|what entry 0 is for|...|what entry 1,023 is for|
    rank 1      |...

A rank writes to its own row, and to the head once. All of it under one lock of the file, which the
system takes back from a process that ends. An entry is decided when all have said what it is for:
together if that is the same, else each alone, from there on for ever. A rank that waited long
enough decides for alone, and cannot where all have said it meanwhile: so all decide alike.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .group import process_runs
from .segment import Segment
from .waiting import wait_until

# More than twice the slots of a pool: nobody is further ahead of another rank.
_RING = 1024
_HEAD, _ROW = 4, _RING + 2
_NEVER = 1 << 62

DIFFERS, MISSING, LEFT = 1, 2, 3
_GONE = -1  # in the place of the process of a rank that has closed


def ledger_bytes(ranks: int) -> int:
    """The size of the memory for so many ranks."""
    return 8 * (_HEAD + ranks * _ROW)


@dataclass(frozen=True, slots=True)
class Parting:
    """Why each rank brings units alone from some entry on: whose doing, and what it was."""

    position: int
    why: int


class Ledger:
    """The shared rows, as one of the ranks sees them. `position` counts the ranks of the host."""

    def __init__(self, segment: Segment, position: int, ranks: int) -> None:
        self.position, self.ranks = position, ranks
        self._segment = segment
        self._cells = memoryview(segment.mapped).cast("q")
        with self._segment.locked():
            self._cells[self._row(position)] = os.getpid()
            if not self._cells[3]:  # whoever comes first: memory is made of zeros
                self._cells[0], self._cells[3] = _NEVER, 1

    def post(self, entry: int, what: int) -> None:
        """Says what `entry` is for; entries that were left out are for nothing."""
        row = self._row(self.position)
        with self._segment.locked():
            for skipped in range(self._cells[row + 1], entry):
                self._cells[row + 2 + skipped % _RING] = -1
            self._cells[row + 2 + entry % _RING] = what
            self._cells[row + 1] = entry + 1

    def together(self, entry: int) -> bool | None:
        """What is decided of `entry`; None as long as one has not said what it is for."""
        with self._segment.locked():
            return self._decided(entry)

    def missing(self, entry: int) -> list[int]:
        """Positions of ranks that have not said what `entry` is for."""
        with self._segment.locked():
            return [p for p in range(self.ranks) if self._cells[self._row(p) + 1] <= entry]

    def part(self, entry: int, position: int, why: int) -> bool:
        """From `entry` on each is alone, unless all have said the same of it; what is decided."""
        with self._segment.locked():
            decided = self._decided(entry)
            if decided is None:
                self._write(entry, position, why)
            return bool(decided)

    def withdraw(self, entry: int) -> None:
        """This rank does not take part from `entry` on, or the next where all have said it."""
        with self._segment.locked():
            first = entry + bool(self._decided(entry))
            if self._cells[0] > first:
                self._write(first, self.position, LEFT)

    def parting(self) -> Parting | None:
        """Why each rank is alone by now."""
        if self._cells[0] == _NEVER:
            return None
        with self._segment.locked():
            return Parting(self._cells[1], self._cells[2])

    def has_ended(self, position: int) -> bool:
        """Whether the rank has closed, or its process is no more."""
        process = self._cells[self._row(position)]
        return process == _GONE or (process > 0 and not process_runs(process))

    def close(self) -> None:
        """Says that this rank is gone, and lets go of the memory."""
        self._cells[self._row(self.position)] = _GONE  # one write: closing waits for no lock
        self._cells.release()
        self._segment.stop_offering()

    def _decided(self, entry: int) -> bool | None:
        if self._cells[0] <= entry:
            return False
        rows = [self._row(position) for position in range(self.ranks)]
        if any(self._cells[row + 1] <= entry for row in rows):
            return None
        said = [self._cells[row + 2 + entry % _RING] for row in rows]
        if said[1:] == said[:-1]:
            return True
        other = next(p for p, what in enumerate(said) if what != said[0])
        self._write(entry, other, DIFFERS)
        return False

    def _write(self, entry: int, position: int, why: int) -> None:
        self._cells[0], self._cells[1], self._cells[2] = entry, position, why

    @staticmethod
    def _row(position: int) -> int:
        return _HEAD + position * _ROW


def wait_for(ledger: Ledger, entry: int, seconds: float) -> Sequence[int]:
    """Waits until `entry` is decided; the ranks that ended or did not come within `seconds`."""
    end = time.monotonic() + seconds
    lost: list[int] = []

    def decided() -> bool:
        if lost or ledger.together(entry) is not None:
            return True
        if time.monotonic() > end:
            lost[:] = ledger.missing(entry)
        return bool(lost)

    def look() -> None:
        lost[:] = [position for position in ledger.missing(entry) if ledger.has_ended(position)]

    wait_until(decided, look=look)
    return lost
