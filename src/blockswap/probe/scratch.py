"""The file that the disk is measured with: the user's own, or a scratch file, always removed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError, ReadError
from ..layout.stamp import FileStamp, stamp_of
from ..units import GIB, MIB, format_bytes

# Left free on the disk whatever the probe does.
_LEFT_FREE = GIB
_PATTERN_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True)
class ProbeFile:
    """A file to read from. `written` says that its bytes were in the page cache a moment ago."""

    path: Path
    stamp: FileStamp
    written: bool

    @property
    def nbytes(self) -> int:
        return self.stamp.size


@contextlib.contextmanager
def probe_file(place: Path, scratch_bytes: int) -> Iterator[ProbeFile]:
    """The file at `place`, or a scratch file in the folder `place`, removed on the way out.

    Raises OutputError where the folder has no room or cannot be written, ReadError where there is
    nothing at `place`.
    """
    if place.is_file():
        yield ProbeFile(place, stamp_of(os.stat(place)), written=False)
        return
    if not place.is_dir():
        raise ReadError(f"the disk at {place} cannot be measured: name a folder or a file there")
    _require_room(place, scratch_bytes)
    path: Path | None = None
    try:
        path = _write(place, scratch_bytes)
        yield ProbeFile(path, stamp_of(os.stat(path)), written=True)
    finally:
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def forget_pages(path: Path) -> bool:
    """Asks the system to drop the file's pages from its cache; False where it cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return True


def _require_room(folder: Path, scratch_bytes: int) -> None:
    free, needed = shutil.disk_usage(folder).free, scratch_bytes + _LEFT_FREE
    if free < needed:
        raise OutputError(
            f"the disk at {folder} was not measured: a scratch file of "
            f"{format_bytes(scratch_bytes)} that leaves {format_bytes(_LEFT_FREE)} free needs "
            f"{format_bytes(needed)}, {format_bytes(free)} are free: make room, or name a model "
            "file there instead of the folder"
        )


def _write(folder: Path, nbytes: int) -> Path:
    """Random bytes, lest the file system compress them away, written through to the disk."""
    try:
        number, name = tempfile.mkstemp(dir=folder, prefix=".blockswap-probe-", suffix=".tmp")
    except OSError as error:
        raise _refused(folder, error) from error
    try:
        with open(number, "wb", buffering=0) as file:
            pattern = memoryview(os.urandom(min(nbytes, _PATTERN_BYTES)))
            left = nbytes
            while left:
                left -= file.write(pattern[: min(left, len(pattern))])
            os.fsync(file.fileno())
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError):
            raise _refused(folder, error) from error
        raise
    return Path(name)


def _refused(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"the disk at {folder} was not measured: no scratch file can be written there "
        f"({error.strerror or error}): name a model file there instead of the folder"
    )
