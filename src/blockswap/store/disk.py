"""The disk store: a unit's reads in pieces of 8 MiB; a file changed while open is refused.

No second copy exists, on disk or in RAM. A unit is a few large sector-aligned reads, split into
pieces so that several can be under way at once; what comes back is the unit's slab (`FileSlab`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from zlib import crc32

from ..errors import ReadError
from ..layout.shares import Span
from ..layout.slab import align_up
from ..layout.stamp import Stamped
from .contents import Contents, Looks, checksum
from .file_io import StreamedFile, memory_at
from .file_slab import SECTOR, Extent, FileRun, FileSlab, file_slab, part_of
from .landing import Landing
from .readers import Piece

PIECE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DiskUnit:
    """A unit's name (for messages) and the place of each of its leaves in the checkpoint.

    `part`: what is read of it, where that is not all; `extents` are then the bytes it reads for.
    """

    name: str
    extents: tuple[Extent, ...]
    part: FileSlab | None = None

    @property
    def slab(self) -> FileSlab:
        return self.part or file_slab(self.extents)

    @classmethod
    def within(cls, unit: "DiskUnit", spans: Sequence[Span]) -> "DiskUnit":
        """No more than `spans` of the unit's slab."""
        part, extents = part_of(unit.slab, unit.extents, spans)
        return cls(unit.name, extents, part)


class DiskStore:
    """Streamed units of a checkpoint. Owns the open files; knows nothing of devices."""

    def __init__(
        self,
        headers: Sequence[Stamped],
        units: Sequence[DiskUnit],
        *,
        direct: bool = True,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        """Opens the files of `headers`; extents name them by position. Raises ReadError.

        `piece_bytes` is the most that one read brings, rounded up to whole sectors.
        """
        self._piece_bytes = align_up(max(piece_bytes, 1), SECTOR)
        self._units = tuple(units)
        self.slabs: tuple[FileSlab, ...] = tuple(unit.slab for unit in self._units)
        self._contents = Contents()
        self._looks: Looks | None = None
        self._files: list[StreamedFile] = []
        try:
            for header in headers:
                self._files.append(StreamedFile(header, direct=direct))
        except ReadError:
            self.close()
            raise

    @property
    def modes(self) -> tuple[str, ...]:
        """How each shard is read at present: "direct", "buffered" or "plain"."""
        return tuple(file.mode for file in self._files)

    def look(self) -> None:
        """Remembers what the files hold now, for units that a change may come before.

        Raises ReadError.
        """
        extents = [unit.extents for unit in self._units]
        for index, of_unit in enumerate(extents):
            if of_unit:
                self._contents.base[index] = self._ctimes(index)
        if extents and any(extents):
            first = next(unit[0] for unit in extents if unit)
            with self._named(0, first.shard, first.offset):
                self._looks = Looks(self._files, extents)

    def sums(self) -> dict[str, int]:
        """Checksums of what has been read: by unit, and behind a | by which bytes these are."""
        return {self._sum_names[index]: n for index, n in self._contents.sums().items()}

    @cached_property
    def _sum_names(self) -> list[str]:
        return [f"{one.name}|{crc32(repr(one.extents).encode()):08x}" for one in self._units]

    def slab_offsets(self, index: int) -> tuple[int, ...]:
        """Byte offset of each leaf in the unit's slab."""
        return self.slabs[index].slab.offsets

    def pieces(self, index: int, landing: Landing) -> list[Piece]:
        """Reads that together bring the unit's runs to `landing` (sector-aligned host memory).

        Each raises ReadError naming file, unit and offset. The memory must stay valid and
        untouched until all have run; then `settle` completes the slab.
        """
        pieces: list[Piece] = []
        for run in self.slabs[index].runs:
            for start in range(0, run.nbytes, self._piece_bytes):
                size = min(self._piece_bytes, run.nbytes - start)
                for at, part, base in landing.spans(run.slab_offset + start, size):
                    span = (at - run.slab_offset, part)
                    pieces.append(_ReadPiece(self, index, run, span, base, landing))
        return pieces

    def settle(self, index: int, landing: Landing) -> int:
        """Moves what the file laid unaligned; returns the bytes moved.

        Raises ReadError if a file was written to since it was opened.
        """
        slab = self.slabs[index]
        self._check_content(index, landing)
        for run in slab.runs:
            if self._files[run.shard].mode == "buffered":
                self._files[run.shard].drop_pages(run.offset, run.nbytes)
        for move in slab.moves:
            landing.move_up(move.source, move.target, move.nbytes)
        return sum(move.nbytes for move in slab.moves)

    def begin(self, index: int, landing: Landing) -> None:
        """A read of the unit into `landing` is about to begin, in this thread."""
        self._contents.begin(index, landing, lambda: self._ctimes(index))

    def _ctimes(self, index: int) -> tuple[int, ...]:
        """Those of the unit's files. Raises ReadError if one was written to since it was opened."""
        found = []
        first = {run.shard: run.offset for run in reversed(self.slabs[index].runs)}
        for shard, offset in first.items():
            with self._named(index, shard, offset):
                found.append(self._files[shard].check_unchanged())
        return tuple(found)

    def _check_content(self, index: int, landing: Landing) -> None:
        """Raises ReadError if the bytes that were read are not those of the first time."""
        now, runs = self._ctimes(index), self.slabs[index].runs
        if not runs:
            return
        with self._named(index, runs[0].shard, runs[0].offset):
            same = self._contents.is_same(
                index,
                landing,
                now,
                take=lambda: checksum(runs, self._units[index].extents, landing),
                looks_same=lambda: self._looks is None or self._looks.same(index),
            )
        if not same:
            paths = dict.fromkeys(self._files[run.shard].path for run in runs)
            raise ReadError(
                f"{' or '.join(paths)} was written to while it was open: {self._units[index].name} "
                "holds other bytes, though size and time of the file are as before; open it again "
                "to use the new content"
            )

    def read_piece(self, index: int, run: FileRun, span: tuple[int, int], address: int) -> None:
        """Reads `span` = (start, size) of `run`: slab offset o goes to `address + o`."""
        file = self._files[run.shard]
        start, size = span
        needed = max(0, min(size, run.needed - start))
        target = memory_at(address + run.slab_offset + start, size)
        with self._named(index, run.shard, run.offset + start):
            file.read(run.offset + start, target, needed)

    @contextmanager
    def _named(self, index: int, shard: int, offset: int) -> Iterator[None]:
        """Says of whatever fails inside which unit, file and byte it is about."""
        try:
            yield
        except (OSError, MemoryError) as error:
            cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ReadError(
                f"reading {self._units[index].name} from {self._files[shard].path} at byte "
                f"{offset} failed: {cause}"
            ) from error

    def close(self) -> None:
        """Closes every file. No read may be under way."""
        for file in self._files:
            file.close()


@dataclass(frozen=True, slots=True)
class _ReadPiece:
    store: DiskStore
    index: int
    run: FileRun
    span: tuple[int, int]
    address: int
    landing: Landing

    def __call__(self) -> None:
        self.store.begin(self.index, self.landing)
        self.store.read_piece(self.index, self.run, self.span, self.address)
