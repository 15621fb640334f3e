"""The disk store: streamed units rest in the checkpoint file itself and are read from there.

No second copy exists, on disk or in RAM. A unit is a few large sector-aligned reads, split into
pieces so that several can be under way at once; what comes back is the unit's slab (`FileSlab`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import ReadError
from ..layout.slab import align_up
from ..layout.stamp import Stamped
from .file_io import StreamedFile, memory_at
from .file_slab import SECTOR, Extent, FileRun, FileSlab, file_slab
from .landing import Landing
from .readers import Piece

PIECE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DiskUnit:
    """A unit's name (for messages) and the place of each of its leaves in the checkpoint."""

    name: str
    extents: tuple[Extent, ...]


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
        self.slabs: tuple[FileSlab, ...] = tuple(file_slab(unit.extents) for unit in self._units)
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
                    pieces.append(_ReadPiece(self, index, run, span, base))
        return pieces

    def settle(self, index: int, landing: Landing) -> int:
        """Moves what the file laid unaligned; returns the bytes moved.

        Raises ReadError if a file was written to since it was opened.
        """
        slab = self.slabs[index]
        first = {run.shard: run.offset for run in reversed(slab.runs)}
        for shard, offset in first.items():
            with self._named(index, shard, offset):
                self._files[shard].check_unchanged()
        for run in slab.runs:
            if self._files[run.shard].mode == "buffered":
                self._files[run.shard].drop_pages(run.offset, run.nbytes)
        for move in slab.moves:
            landing.move_up(move.source, move.target, move.nbytes)
        return sum(move.nbytes for move in slab.moves)

    def read_into(self, index: int, address: int) -> int:
        """Reads the whole unit in the calling thread; returns the bytes moved."""
        landing = Landing.at(address)
        for piece in self.pieces(index, landing):
            piece()
        return self.settle(index, landing)

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

    def __call__(self) -> None:
        self.store.read_piece(self.index, self.run, self.span, self.address)
