"""The part: this module owns the unfinished file, written in order and only ever by one process."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO

from ..errors import OutputError
from ..layout.dtypes import ITEM_BYTES
from ..layout.writing import Meter
from .cast import PieceReader, pieces
from .journal import Journal
from .order import NewLayout, Placed

# How much is at most written again after a crash.
SAVE_BYTES = 256 * 1024 * 1024


@contextmanager
def open_part(journal: Journal) -> Iterator[FileIO]:
    """The part, locked against a second conversion to the same target where the system can."""
    _refuse_links(journal)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(journal.part, flags, 0o666)
    with FileIO(descriptor, "r+") as file:
        _lock(file, journal)
        yield file


def _refuse_links(journal: Journal) -> None:
    """What is no plain file of one name was not left by a conversion, and writing into it would
    destroy what it leads to: the source, even."""
    for path in (journal.part, journal.path, journal.fresh):
        if not os.path.lexists(path):
            continue
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise OutputError(
                f"cannot write {path}: a link or no plain file is there, which no conversion "
                "left: remove it, or choose another name for the target"
            )


def write_part(
    file: FileIO, journal: Journal, layout: NewLayout, reader: PieceReader, meter: Meter
) -> tuple[int, str | None]:
    """Writes what is missing; all of it is on the disk on return.

    Returns the bytes found done, and why an older part was of no use. Whatever ends it early, the
    journal says how far it came. Raises ReadError, ArgsError, OSError.
    """
    found, stale = journal.resumable()
    file.truncate(found)
    file.seek(found)
    meter.add(found)
    done = saved = found
    try:
        for chunk in _chunks(layout, found, reader):
            _write(file, chunk)
            done += len(chunk)
            meter.add(len(chunk))
            if done - saved >= SAVE_BYTES:
                _save(file, journal, done)
                saved = done
    except BaseException:
        # A full disk may not even take the journal: the older one stays then.
        with suppress(OSError):
            _save(file, journal, done)
        raise
    _save(file, journal, done)
    return found, stale


def _chunks(layout: NewLayout, done: int, reader: PieceReader) -> Iterator[bytes | memoryview]:
    """The new file's bytes from `done` on."""
    if done < len(layout.header):
        yield layout.header[done:]
    start = len(layout.header)
    for tensor in layout.tensors:
        end = start + tensor.nbytes
        if end > done:
            yield from _tensor_chunks(tensor, max(0, done - start), reader)
        start = end


def _tensor_chunks(
    tensor: Placed, skipped: int, reader: PieceReader
) -> Iterator[bytes | memoryview]:
    if tensor.source is None:
        yield bytes(tensor.nbytes - skipped)
        return
    item_bytes = ITEM_BYTES[tensor.dtype]
    stored = tensor.source[1].dtype
    count = tensor.nbytes // item_bytes
    for span in pieces(stored, tensor.dtype, count, start=skipped // item_bytes):
        yield reader.read(tensor.source, span, tensor.dtype)


def _save(file: FileIO, journal: Journal, done: int) -> None:
    os.fsync(file.fileno())
    journal.save(done)
    if hasattr(os, "posix_fadvise"):
        # Nobody reads it soon, and reading it back is to read the disk.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write(file: FileIO, chunk: bytes | memoryview) -> None:
    left = memoryview(chunk)
    while left:
        left = left[file.write(left) or 0 :]


def _lock(file: FileIO, journal: Journal) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: verification is what would notice a second writer
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"{journal.part} is being written by another conversion: wait until it is done"
        ) from error
    except OSError:
        return  # a network mount without locks: as on Windows
