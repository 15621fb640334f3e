"""Which ranges of a file a unit is read in (sectors, small gaps joined), and what is realigned.

A direct read (O_DIRECT) fixes address = file offset modulo the sector, so the slab of a unit from
disk is made of sector-aligned pieces of the file, padding and small gaps included:

    file   ...|####q.weight####|#q.bias#|..other..|##k.weight##|...
    slab      [sector ... sector) run 0  [sector ... sector) run 1

safetensors pads its header to 8 bytes only. A leaf that would lie below its alignment is moved up
once after the read, into room the slab keeps for it (fp32 kernels on the CPU differ in the last
bit for tensors at 4- or 8-byte offsets). The room is kept even where nothing moves, so that what
a plan takes does not depend on the device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..layout.shares import Span, within
from ..layout.slab import Slab, align_up

SECTOR = 4096
LEAST_ALIGNMENT = 16
# Reading a gap of this size costs less than another request to the disk.
JOIN_GAP_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Extent:
    """A leaf's bytes in the checkpoint: shard number, byte offset in that file, size in bytes.

    `alignment` is what the leaf needs in the slab, at most `LEAST_ALIGNMENT`.
    """

    shard: int
    offset: int
    nbytes: int
    alignment: int = LEAST_ALIGNMENT


@dataclass(frozen=True, slots=True)
class FileRun:
    """One contiguous read: whole sectors from `offset`; bytes up to `needed` must be there."""

    shard: int
    offset: int
    nbytes: int
    needed: int
    slab_offset: int


@dataclass(frozen=True, slots=True)
class Move:
    """`nbytes` bytes of the slab to move from `source` up to `target` once they are read."""

    source: int
    target: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class FileSlab:
    """The slab of a unit from disk. `moves` are in the order in which they must be made."""

    slab: Slab
    runs: tuple[FileRun, ...]
    moves: tuple[Move, ...]

    @property
    def read_bytes(self) -> int:
        return sum(run.nbytes for run in self.runs)


def file_slab(extents: Sequence[Extent]) -> FileSlab:
    """Lays out the slab for leaves at `extents`, given in the unit's leaf order."""
    offsets = [0] * len(extents)
    runs: list[FileRun] = []
    moves: list[Move] = []
    end = 0
    for group in _joined(extents):
        first = extents[group[0]]
        start = first.offset // SECTOR * SECTOR
        needed = max(extents[i].offset + extents[i].nbytes for i in group) - start
        base = end
        end = _room(group, extents, base - start)
        moved = _settle(group, extents, base - start, offsets)[1]
        moves = moved + moves  # within a run the last leaf moves first: it makes room
        size = align_up(needed, SECTOR)
        if needed:
            runs.append(FileRun(first.shard, start, size, needed, base))
        end = align_up(max(end, base + size), SECTOR)
    return FileSlab(Slab(nbytes=end, offsets=tuple(offsets)), tuple(runs), tuple(moves))


def part_of(
    whole: FileSlab, extents: Sequence[Extent], spans: Sequence[Span]
) -> tuple[FileSlab, tuple[Extent, ...]]:
    """What brings no more than `spans` of that slab, and which bytes of the file those are.

    `extents` are those the slab was laid out for; `spans` do not touch. Sectors are read whole.
    """
    found: list[Extent] = []
    windows: list[tuple[FileRun, int, int]] = []
    for span in spans:
        for run in whole.runs:
            own = list(_within_run(whole, extents, run, span))
            if own:
                found += [extent for extent, _ in own]
                first = min(at for _, at in own) // SECTOR * SECTOR
                last = max(at + extent.nbytes for extent, at in own)
                windows.append((run, first, align_up(last, SECTOR)))
    runs = tuple(_cut(run, first, last) for run, first, last in _apart(windows))
    moves = tuple(
        Move(move.source + start - move.target, start, size)
        for move in whole.moves
        for start, size in reversed(within(move.target, move.nbytes, spans))
    )
    return FileSlab(whole.slab, runs, moves), tuple(found)


def _within_run(
    whole: FileSlab, extents: Sequence[Extent], run: FileRun, span: Span
) -> Iterator[tuple[Extent, int]]:
    """What of the leaves of `run` ends up in `span`, and where in the slab a read lays it."""
    for extent, final in zip(extents, whole.slab.offsets, strict=True):
        inside = extent.offset - run.offset
        if extent.shard == run.shard and 0 <= inside < run.needed:
            for start, size in within(final, extent.nbytes, (span,)):
                shift = start - final
                part = replace(extent, offset=extent.offset + shift, nbytes=size)
                yield part, run.slab_offset + inside + shift


def _apart(windows: Sequence[tuple[FileRun, int, int]]) -> list[tuple[FileRun, int, int]]:
    """The same without sectors that are in two of them."""
    found: list[tuple[FileRun, int, int]] = []
    for run, first, last in sorted(windows, key=lambda window: window[1:]):
        if found and found[-1][0] is run and first <= found[-1][2]:
            _, before, reach = found.pop()
            found.append((run, before, max(reach, last)))
        else:
            found.append((run, first, last))
    return found


def _cut(run: FileRun, first: int, last: int) -> FileRun:
    """What of the run lies in [first, last) of the slab."""
    skipped, size = first - run.slab_offset, last - first
    needed = min(run.needed - skipped, size)
    return FileRun(run.shard, run.offset + skipped, size, needed, first)


def _joined(extents: Sequence[Extent]) -> Iterator[list[int]]:
    """Leaf numbers grouped into runs, in file order. Empty leaves join the run they lie in."""
    order = sorted(range(len(extents)), key=lambda i: (extents[i].shard, extents[i].offset, i))
    group: list[int] = []
    reach = 0
    for i in order:
        extent = extents[i]
        apart = extent.offset - reach > JOIN_GAP_BYTES
        if group and (apart or extent.shard != extents[group[0]].shard):
            yield group
            group = []
        group.append(i)
        reach = extent.offset + extent.nbytes
    if group:
        yield group


def _room(group: Sequence[int], extents: Sequence[Extent], shift: int) -> int:
    """Where the run would end if every leaf had to lie at `LEAST_ALIGNMENT`."""
    strict = [replace(extent, alignment=LEAST_ALIGNMENT) for extent in extents]
    return _settle(group, strict, shift, [0] * len(extents))[0]


def _settle(
    group: Sequence[int], extents: Sequence[Extent], shift: int, offsets: list[int]
) -> tuple[int, list[Move]]:
    """Gives each leaf of a run its final offset; returns the end and the moves, last leaf first."""
    moves: list[Move] = []
    end = 0
    for i in group:
        raw = extents[i].offset + shift
        final = align_up(max(raw, end), extents[i].alignment)
        offsets[i] = final
        end = final + extents[i].nbytes
        if final != raw and extents[i].nbytes:
            moves.insert(0, Move(raw, final, extents[i].nbytes))
    return end, moves
