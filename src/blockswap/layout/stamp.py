"""File stamps: this module owns the question "is this still the file that was opened?"."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..errors import ReadError


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What a file system says of a file that changes when the file is edited or replaced.

    `size` in bytes, `mtime_ns` and `ctime_ns` in nanoseconds since the epoch. A ctime alone says
    only that something was done (chmod, a hard link, an edit whose mtime was put back): two stamps
    are equal without it, and who needs to know compares the content.
    """

    size: int
    mtime_ns: int
    inode: int
    device: int
    ctime_ns: int = field(default=0, compare=False)


class Stamped(Protocol):
    """Anything that remembers the stamp of the file it was read from."""

    @property
    def path(self) -> Path: ...
    @property
    def stamp(self) -> FileStamp: ...


def stamp_of(status: os.stat_result) -> FileStamp:
    """The stamp within the result of `os.stat` or `os.fstat`."""
    return FileStamp(
        status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev, status.st_ctime_ns
    )


def verify_unchanged(header: Stamped, *, fd: int | None = None) -> FileStamp:
    """The stamp of now when the file is still the one whose header was read; else raises ReadError.

    With `fd` the open file itself is looked at: edits and truncation show, a new file put under
    the same name does not, because the descriptor still reads the old one. Without it the file
    that now bears the name is looked at, so a replacement shows too.
    """
    path, then = header.path, header.stamp
    try:
        now = stamp_of(os.stat(path) if fd is None else os.fstat(fd))
    except OSError as error:
        raise ReadError(
            f"{path} cannot be looked at any more ({error.strerror}): "
            "put the file back and open it again"
        ) from error
    if now == then:
        return now
    if (now.inode, now.device) != (then.inode, then.device):
        fact = "was replaced by another file"
    elif now.size < then.size:
        fact = f"was cut from {then.size:,} to {now.size:,} bytes"
    else:
        fact = f"was written to (from {then.size:,} to {now.size:,} bytes)"
    raise ReadError(f"{path} {fact} while it was open: open it again to use the new content")
