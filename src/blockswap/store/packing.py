"""Which tensor goes into which power-of-two chunk of pinned memory; four copies a unit at most.

torch's host allocator rounds each pinned allocation up to a power of two, so the arena asks for
powers of two and fills them itself. A unit may span chunks, a leaf never does; leaves are free to
change places inside their unit's slab, so the tail of a chunk takes the leaves that still fit.

    chunk 0 |unit 0: 9 leaves             |unit 1: 4 leaves   |  <- too short for the next leaf
    chunk 1 |unit 1: 5 leaves |unit 2: 9 leaves          |...

Each run of leaves in one chunk is one copy; `MAX_RUNS` bounds the copies of a unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..layout.slab import LEAF_ALIGNMENT, Slab, align_up
from ..layout.values import UnitLayout

MAX_RUNS = 4


@dataclass(frozen=True, slots=True)
class Run:
    """`nbytes` bytes that lie together in a chunk and together in the unit's slab."""

    chunk: int
    chunk_offset: int
    slab_offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class PackedUnit:
    """Where a unit lies in the arena, and the slab that its runs fill on the device."""

    slab: Slab
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Packing:
    """Sizes of the arena's chunks in bytes, and the place of every unit in them."""

    chunk_bytes: tuple[int, ...]
    units: tuple[PackedUnit, ...]


def pack_arena(units: Sequence[UnitLayout]) -> Packing:
    """Places `units` in the order given. Chunks are powers of two, none larger than it must be.

    A chunk is at most as large as the largest unit (rounded down to a power of two) or the
    largest leaf (rounded up), so that filling the arena unit by unit never holds more than the
    model and about one block beside it. Only the last run that a unit may have takes a larger
    chunk, if all that is left of the unit needs one.
    """
    sizes = [[align_up(leaf.nbytes, LEAF_ALIGNMENT) for leaf in unit.leaves] for unit in units]
    largest_unit = max((sum(unit) for unit in sizes), default=0)
    largest_leaf = max((size for unit in sizes for size in unit), default=0)
    return _Filler(sizes, max(_power_below(largest_unit), _power_above(largest_leaf))).fill()


def _power_below(nbytes: int) -> int:
    return 1 << max(nbytes.bit_length() - 1, 0)


def _power_above(nbytes: int) -> int:
    return 1 << max(nbytes - 1, 0).bit_length()


class _Filler:
    """Walks the units once, opening a chunk whenever nothing more fits into the last one."""

    def __init__(self, sizes: Sequence[Sequence[int]], chunk_bytes: int) -> None:
        self._sizes = sizes
        self._chunk_bytes = chunk_bytes
        self._chunks: list[int] = []
        self._used = 0  # bytes used of the last chunk
        self._remaining = sum(sum(unit) for unit in sizes)

    def fill(self) -> Packing:
        units = tuple(self._place(unit) for unit in self._sizes)
        return Packing(chunk_bytes=tuple(self._chunks), units=units)

    def _place(self, sizes: Sequence[int]) -> PackedUnit:
        offsets = [0] * len(sizes)
        runs: list[Run] = []
        waiting = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
        slab_end = 0
        while waiting:
            free = (self._chunks[-1] if self._chunks else 0) - self._used
            rest = sum(sizes[i] for i in waiting)
            if len(runs) == MAX_RUNS - 1 and rest > free:
                self._open_chunk(rest)
                continue
            taken, left = _take(waiting, sizes, free)
            if not taken:
                self._open_chunk(max(sizes[i] for i in waiting))
                continue
            run_start = slab_end
            for i in sorted(taken):
                offsets[i] = slab_end
                slab_end += sizes[i]
            nbytes = slab_end - run_start
            if nbytes:
                runs.append(Run(len(self._chunks) - 1, self._used, run_start, nbytes))
            self._used += nbytes
            self._remaining -= nbytes
            waiting = left
        return PackedUnit(slab=Slab(nbytes=slab_end, offsets=tuple(offsets)), runs=tuple(runs))

    def _open_chunk(self, least_bytes: int) -> None:
        size = min(self._chunk_bytes, _power_above(self._remaining))
        lower = _power_below(self._remaining)
        if size - self._remaining > self._remaining // 4 and lower >= least_bytes:
            size = min(size, lower)  # two smaller chunks waste less than one half-empty one
        self._chunks.append(max(size, _power_above(least_bytes)))
        self._used = 0


def _take(waiting: Sequence[int], sizes: Sequence[int], free: int) -> tuple[list[int], list[int]]:
    """Splits `waiting` (largest first) into the leaves that fit into `free` bytes and the rest."""
    taken, left = [], []
    for i in waiting:
        if sizes[i] <= free:
            taken.append(i)
            free -= sizes[i]
        else:
            left.append(i)
    return taken, left
