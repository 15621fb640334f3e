"""Whether a unit's bytes in the file are still those read first: by ctime, then by checksum.

A ctime that moved while size and mtime stayed may be a chmod, a hard link, a rename, or an edit
whose mtime was put back: only the bytes tell. Each unit's checksum is taken when it is read first,
and again only when the ctime is another than then; with the ctime at rest nothing is computed.
What was not read yet is compared with a look taken at opening (`Looks`): every byte of small units,
the middle sector of each tensor of large ones.
"""

import ctypes
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .file_io import StreamedFile
from .file_slab import SECTOR, Extent, FileRun
from .landing import Landing

# Opening looks at so many bytes in all, shared evenly; a unit that is larger is sampled.
LOOK_BYTES = 64 * 1024 * 1024
_CHUNK = 1024 * 1024

Ctimes = tuple[int, ...]


def checksum(runs: Sequence[FileRun], extents: Sequence[Extent], landing: Landing) -> int:
    """Of the leaves at `extents` where a read of `runs` has laid them: gaps belong to others."""
    total = 0
    for extent in extents:
        for run in runs:
            inside = extent.offset - run.offset
            if extent.shard == run.shard and 0 <= inside < run.nbytes and extent.nbytes:
                for start, size, base in landing.spans(run.slab_offset + inside, extent.nbytes):
                    memory = (ctypes.c_char * size).from_address(base + start)
                    total = zlib.crc32(memory, total)  # without the interpreter's lock
                break
    return total


@dataclass(frozen=True, slots=True)
class _Known:
    ctimes: Ctimes
    checksum: int


class Contents:
    """The content of each unit as it was read first."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._begun: dict[tuple[int, int], Ctimes] = {}
        self.base: dict[int, Ctimes] = {}  # with what ctimes the looks were taken

    def sums(self) -> dict[int, int]:
        """The checksum of each unit that was read; readers may read others meanwhile."""
        return {index: known.checksum for index, known in dict(self._known).items()}

    def begin(self, index: int, landing: Landing, ctimes: Callable[[], Ctimes]) -> None:
        """Before any read of the unit into `landing`; readers may call it at once."""
        key = (index, landing.addresses[0])
        if key not in self._begun:
            self._begun.setdefault(key, ctimes())

    def is_same(
        self,
        index: int,
        landing: Landing,
        now: Ctimes,
        *,
        take: Callable[[], int],
        looks_same: Callable[[], bool],
    ) -> bool:
        """After the last read: whether the bytes are those of the first time. `take` adds them up.

        Kept under the ctimes from before the read: a write during it is compared next time.
        """
        begun = self._begun.pop((index, landing.addresses[0]), ())
        known = self._known.get(index)
        if known is not None and known.ctimes == begun == now:
            return True
        found = take()
        if known is not None:
            same = known.checksum == found
        else:
            same = self.base.get(index, now) == begun == now or looks_same()
        if same:
            self._known[index] = _Known(begun, found)
        return same


class Looks:
    """Checksums of what opening looked at, per unit."""

    def __init__(self, files: Sequence[StreamedFile], units: Sequence[Sequence[Extent]]) -> None:
        """Looks at `files`, which extents name by position. Raises OSError or ReadError."""
        self._files = files
        share = LOOK_BYTES // max(1, len(units))
        self._spans = [_spans(extents, share) for extents in units]
        self._seen = [self._look(index) for index in range(len(units))]

    def same(self, index: int) -> bool:
        """Whether the unit's files still show the same. Raises OSError or ReadError."""
        return self._look(index) == self._seen[index]

    def _look(self, index: int) -> int:
        total = 0
        for shard, start, size in self._spans[index]:
            for done in range(0, size, _CHUNK):
                part = min(_CHUNK, size - done)
                total = zlib.crc32(self._files[shard].look(start + done, part), total)
        return total


def _spans(extents: Sequence[Extent], share: int) -> list[tuple[int, int, int]]:
    """(shard, start, size) of what is looked at of one unit."""
    whole = sum(extent.nbytes for extent in extents) <= share
    spans = []
    for extent in sorted(extents, key=lambda extent: (extent.shard, extent.offset)):
        size = extent.nbytes if whole else min(extent.nbytes, SECTOR)
        if size:
            spans.append((extent.shard, extent.offset + (extent.nbytes - size) // 2, size))
    return spans
