"""Which bytes of a slab each of several ranks brings: aligned parts, and a tail that all bring.

slab     |part of rank 0|part of rank 1|part of rank 2|tail|
rank 1 brings            ##############                ####
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]  # start and size


@dataclass(frozen=True, slots=True)
class Shares:
    """A slab of `nbytes` cut for `ranks` ranks; parts begin and end at multiples of `alignment`."""

    nbytes: int
    ranks: int
    alignment: int

    @property
    def part_bytes(self) -> int:
        """The size of each part; 0 where the slab is too small to be cut."""
        return self.nbytes // self.ranks // self.alignment * self.alignment

    @property
    def tail_bytes(self) -> int:
        """What belongs to no part: less than the alignment times the ranks and once more."""
        return self.nbytes - self.ranks * self.part_bytes

    @property
    def own_bytes(self) -> int:
        """What each rank brings."""
        return self.part_bytes + self.tail_bytes

    def own(self, rank: int) -> tuple[Span, ...]:
        """What rank number `rank` brings."""
        part, tail = (rank * self.part_bytes, self.part_bytes), self.tail_bytes
        spans = (part, (self.ranks * self.part_bytes, tail))
        return tuple(span for span in spans if span[1])


def within(start: int, nbytes: int, spans: Sequence[Span]) -> list[Span]:
    """What of [start, start + nbytes) lies in `spans`."""
    found = []
    for first, size in spans:
        begin, end = max(start, first), min(start + nbytes, first + size)
        if begin < end:
            found.append((begin, end - begin))
    return found


def side_by_side(spans: Iterable[Span]) -> list[Span]:
    """The same bytes in order, with spans that touch as one."""
    found: list[Span] = []
    for start, size in sorted(spans):
        if found and sum(found[-1]) == start:
            first, before = found.pop()
            found.append((first, before + size))
        else:
            found.append((start, size))
    return found
