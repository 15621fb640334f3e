"""How a file is read: O_DIRECT, buffered with pages dropped, or plain; when it falls back.

    direct     O_DIRECT + preadv: the disk writes into our memory, the page cache is not touched
    buffered   preadv, and the pages read are dropped behind (posix_fadvise)
    plain      seek + readinto on a handle of each thread's own (no os.preadv: Windows)

Opened once, used by several reader threads at a time.
"""

import ctypes
import errno
import io
import os
import threading
from typing import Literal

from ..errors import ReadError
from ..layout.stamp import Stamped, verify_unchanged
from .file_slab import SECTOR

# Errors that say nothing of O_DIRECT: there is too little of something.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)

Mode = Literal["direct", "buffered", "plain"]


def memory_at(address: int, nbytes: int) -> memoryview:
    """Writable bytes at `address`. The caller keeps the memory alive while the view is used."""
    return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")


class StreamedFile:
    """A file open for positional reads. `close()` gives back every descriptor."""

    def __init__(self, header: Stamped, *, direct: bool = True) -> None:
        """Opens the file that `header` was read from. Raises ReadError if it is another by now."""
        self.path = str(header.path)
        self._header = header
        self._lock = threading.Lock()
        self._local = threading.local()
        self._handles: list[io.FileIO] = []
        self._direct: int | None = None
        self._buffered: int | None = None
        self._closed = False
        self.mode: Mode = "plain"
        try:
            self._open(direct)
            self.check_unchanged()
        except ReadError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise ReadError(
                f"{self.path} cannot be opened ({error.strerror or error}): close other files or "
                "put it back, then open the model again"
            ) from error

    def read(self, offset: int, target: memoryview, needed: int) -> None:
        """Fills `target` from byte `offset`; at least `needed` bytes must come.

        Raises ReadError (truncated) or OSError (the disk's own error).
        """
        done = 0
        while done < len(target):
            count = self._read_once(offset + done, target[done:])
            done += count
            if count == 0:
                break
        if done < needed:
            raise ReadError(
                f"{self.path} ends at byte {offset + done}, {needed - done} bytes before the data "
                "that its header promises: the file was cut short, fetch it again"
            )

    def check_unchanged(self) -> int:
        """The file's ctime. Raises ReadError when it was written to or cut since it was opened."""
        self._refuse_closed()
        return verify_unchanged(self._header, fd=self._descriptor()).ctime_ns

    def look(self, offset: int, nbytes: int) -> bytes:
        """A few bytes, read through the page cache and not kept there."""
        if self._buffered is None:
            handle = self._handle()
            handle.seek(offset)
            return handle.read(nbytes) or b""
        if not hasattr(os, "posix_fadvise"):
            return os.pread(self._buffered, nbytes, offset)
        os.posix_fadvise(self._buffered, 0, 0, os.POSIX_FADV_RANDOM)  # no byte beyond these
        found = os.pread(self._buffered, nbytes, offset)
        os.posix_fadvise(self._buffered, 0, 0, os.POSIX_FADV_NORMAL)
        self.drop_pages(offset, nbytes)
        return found

    def drop_pages(self, offset: int, nbytes: int) -> None:
        """Takes what was read through the page cache out of it again, where that can be asked for.

        The kernel keeps a large page that reaches beyond the bytes: what was read in pieces is to
        be dropped once more as a whole.
        """
        if self._buffered is not None and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._buffered, offset, nbytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        self._closed = True
        for descriptor in (self._direct, self._buffered):
            if descriptor is not None:
                os.close(descriptor)
        self._direct = self._buffered = None
        with self._lock:
            for handle in self._handles:
                handle.close()
            self._handles.clear()

    def _open(self, direct: bool) -> None:
        if not hasattr(os, "preadv"):
            self._handle()
            return
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
        self._buffered = os.open(self.path, flags)
        self.mode = "buffered"
        if direct and hasattr(os, "O_DIRECT"):
            try:
                self._direct = os.open(self.path, flags | os.O_DIRECT)
                self.mode = "direct"
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    raise
                # tmpfs and some network mounts: stay buffered

    def _read_once(self, offset: int, target: memoryview) -> int:
        # A stuck disk may answer after all, when nobody waits for it any more.
        self._refuse_closed()
        if self._buffered is None:
            handle = self._handle()
            handle.seek(offset)
            return handle.readinto(target) or 0
        # A short direct read leaves an odd offset behind: the rest of the piece goes buffered.
        direct = self._direct  # another reader may give it up meanwhile
        if direct is not None and offset % SECTOR == 0 and len(target) % SECTOR == 0:
            try:
                return os.preadv(direct, [target], offset)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                self._give_up_direct()
        count = os.preadv(self._buffered, [target], offset)
        self.drop_pages(offset, count)
        return count

    def _give_up_direct(self) -> None:
        """The file system took the flag but refuses the reads: go on buffered."""
        with self._lock:
            self.mode = "buffered"
            descriptor, self._direct = self._direct, None
            if descriptor is not None:
                # Another thread may be inside a read: the number must stay ours until close().
                self._handles.append(io.FileIO(descriptor, closefd=True))

    def _handle(self) -> io.FileIO:
        handle: io.FileIO | None = getattr(self._local, "handle", None)
        if handle is None:
            handle = io.FileIO(self.path, "rb")
            try:
                # It is opened by name, now: that must still be the file whose header was read.
                verify_unchanged(self._header, fd=handle.fileno())
                with self._lock:
                    self._refuse_closed()
                    self._handles.append(handle)
            except ReadError:
                handle.close()
                raise
            self._local.handle = handle
        return handle

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ReadError(f"{self.path} was closed while it was being read")

    def _descriptor(self) -> int:
        return self._buffered if self._buffered is not None else self._handle().fileno()
