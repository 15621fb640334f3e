"""Files read before their turn: what the page cache was asked to hold, and nobody has taken yet.

    former model   ... |block 39          | close |
    disk                    |next model's first bytes ...|
    next model                                    | open: from the page cache, then from the disk

Pages are the kernel's: it takes them back where memory is short, so nothing can fail by them, and
what was taken back is read once more. Where a system cannot be asked nothing is read ahead.
"""

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .file_slab import SECTOR

# Asked for at once: between two the reading can be stopped. A store's reads have this size, too,
# and one of which a part was not asked for goes to the disk.
_PIECE_BYTES = 8 * 1024 * 1024

_lock = threading.Lock()
_asked: dict[tuple[int, int], list[tuple[int, int]]] = {}  # by device and inode: from, to


@dataclass(frozen=True, slots=True)
class Stretch:
    """`nbytes` of a file from byte `offset` on."""

    path: Path
    offset: int
    nbytes: int


def first_of(stretches: Iterable[Stretch], most: int) -> tuple[Stretch, ...]:
    """No more than `most` bytes of them, in their order, of the last one whole pieces."""
    chosen: list[Stretch] = []
    for stretch in stretches:
        if stretch.nbytes > most:
            nbytes = max(0, most) // _PIECE_BYTES * _PIECE_BYTES
            return (
                (*chosen, Stretch(stretch.path, stretch.offset, nbytes)) if nbytes else (*chosen,)
            )
        chosen.append(stretch)
        most -= stretch.nbytes
    return tuple(chosen)


class ReadAhead:
    """Asks the kernel for `stretches`, in a thread of its own, from `begin` until `stop`."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self._stretches = tuple(stretches)
        self._stopped = threading.Event()
        self.asked_bytes = 0

    def begin(self) -> None:
        """Returns at once. What cannot be asked for is left to whoever reads it."""
        if not self._stretches or not hasattr(os, "posix_fadvise"):
            return
        thread = threading.Thread(target=self._ask, name="blockswap-ahead", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be had
            return

    def stop(self) -> None:
        """Nothing more is asked for; what nobody has read is forgotten."""
        self._stopped.set()
        with _lock:
            _asked.clear()

    def _ask(self) -> None:
        for stretch in self._stretches:
            try:
                self._ask_for(stretch)
            except OSError:  # the file is gone: its reader says so
                return

    def _ask_for(self, stretch: Stretch) -> None:
        descriptor = os.open(stretch.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            status = os.fstat(descriptor)
            key, end = (status.st_dev, status.st_ino), stretch.offset + stretch.nbytes
            for start in range(stretch.offset, end, _PIECE_BYTES):
                size = min(_PIECE_BYTES, end - start)
                with _lock:
                    if self._stopped.is_set():
                        return
                    _add(_asked.setdefault(key, []), start, start + size)
                os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)
                self.asked_bytes += size
        finally:
            os.close(descriptor)


def take(device: int, inode: int, offset: int, nbytes: int) -> bool:
    """Whether these bytes of a file were asked for, and nobody has taken them since."""
    if not _asked:
        return False
    with _lock:
        spans = _asked.get((device, inode), [])
        end = offset + nbytes
        for at, (first, last) in enumerate(spans):
            if first <= offset and end <= last:
                # A sector at either end stays: the neighbours' reads may begin and end in it.
                parts = ((first, offset + SECTOR), (end - SECTOR, last))
                spans[at : at + 1] = [part for part in parts if part[1] - part[0] > 2 * SECTOR]
                return True
    return False


def _add(spans: list[tuple[int, int]], start: int, end: int) -> None:
    if spans and spans[-1][1] == start:
        spans[-1] = (spans[-1][0], end)
    else:
        spans.append((start, end))
