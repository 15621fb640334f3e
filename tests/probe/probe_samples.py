"""Small limits, so that a probe takes a moment, and a disk that lives by a clock of its own."""

import threading
from collections.abc import Callable

import pytest

from blockswap.probe import Limits, reads
from blockswap.store.file_io import StreamedFile
from blockswap.store.readers import ReaderPool

KIB = 1024

SMALL = Limits(
    compute_seconds=0.06,
    link_seconds=0.05,
    disk_seconds=0.05,
    width=256,
    tokens=(64,),
    copy_bytes=256 * KIB,
    scratch_bytes=1024 * KIB,
    readers=(4, 1, 2),
    chunks=(64 * KIB, 16 * KIB, 256 * KIB),
)


class VirtualDisk:
    """Seconds pass only while it reads: bytes / `rate(mode, readers, chunk_bytes, reads so far)`.

    Whatever the threads do, the time of a trial is the sum of its reads.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, rate: Callable[[str, int, int, int], float]
    ) -> None:
        self.seconds = 0.0
        self.reads = 0
        self.trials: list[int] = []  # the number of readers of each
        self._rate = rate
        self._readers = 0
        self._lock = threading.Lock()
        disk = self

        class Counted(ReaderPool):
            def __init__(self, threads: int) -> None:
                disk._readers = threads
                disk.trials.append(threads)
                super().__init__(threads)

        monkeypatch.setattr(reads, "ReaderPool", Counted)

        def read(file: StreamedFile, offset: int, target: memoryview, needed: int) -> None:
            disk._read(file.mode, len(target), needed)

        monkeypatch.setattr(StreamedFile, "read", read)

    def clock(self) -> float:
        return self.seconds

    def _read(self, mode: str, nbytes: int, needed: int) -> None:
        assert needed == nbytes
        with self._lock:
            self.seconds += nbytes / self._rate(mode, self._readers, nbytes, self.reads)
            self.reads += 1
