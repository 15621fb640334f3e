"""One trial of the disk probe: what is read, with the cache dropped, and when it gives up."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..errors import ReadError
from ..store.file_io import StreamedFile, memory_at
from ..store.file_slab import SECTOR
from ..store.readers import Job, ReaderPool
from ..stream.device import aligned, host_buffer
from ..units import GIB, MIB, format_bytes
from .scratch import ProbeFile, forget_pages

Clock = Callable[[], float]

# Reads land here, again and again: what they bring is not looked at.
_BUFFER_BYTES = 64 * MIB
# One trial reads no more, however fast the disk.
_SPAN_BYTES = GIB
# A disk that answers nothing for so long is not measured.
_STUCK_SECONDS = 30.0
# Nothing is left to read then, unless the disk is stuck.
_CLOSING_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to read: with O_DIRECT if it can be had, with how many threads, in what chunks."""

    direct: bool
    readers: int
    chunk_bytes: int


class TrialReader:
    """Reads spans of a file at places drawn at random, as a block of a checkpoint is read."""

    def __init__(
        self, file: ProbeFile, *, clock: Clock = time.perf_counter, seed: int | None = None
    ) -> None:
        self._file = file
        self._clock = clock
        self._places = random.Random(seed)
        self._memory = host_buffer(_BUFFER_BYTES + SECTOR)
        self._memory.zero_()  # the pages are there before the first read
        self._address = aligned(self._memory, _BUFFER_BYTES).data_ptr()
        self.modes: dict[Setting, str] = {}  # how the file was really read
        self.forgetful = True  # whether the system drops the file's pages when asked

    def rate(self, setting: Setting, seconds: float) -> float:
        """Bytes per second of one span, or of as much of it as fits the time; one read at least.

        Raises ReadError, also for a disk that does not answer, or OSError (the disk's own error).
        """
        self.forgetful = forget_pages(self._file.path) and self.forgetful
        file = StreamedFile(self._file, direct=setting.direct)
        pool = ReaderPool(setting.readers)
        try:
            pool.submit(Job([], _nothing))  # the threads are there before the clock runs
            return self._read(file, pool, setting.chunk_bytes, seconds)
        finally:
            self.modes[setting] = file.mode
            pool.close(_CLOSING_SECONDS)
            file.close()

    def _read(
        self, file: StreamedFile, pool: ReaderPool, chunk_bytes: int, seconds: float
    ) -> float:
        offsets = self._span(chunk_bytes)
        places = _BUFFER_BYTES // chunk_bytes
        ends: list[float] = []
        began = self._clock()

        def read(number: int, offset: int) -> None:
            # The first read is made whatever the time: without it there is no figure.
            if number and self._clock() > began + seconds:
                return
            at = self._address + number % places * chunk_bytes
            file.read(offset, memory_at(at, chunk_bytes), chunk_bytes)
            ends.append(self._clock())

        pieces = [partial(read, number, offset) for number, offset in enumerate(offsets)]
        job = Job(pieces, _nothing, keep=self._memory)
        pool.submit(job)
        if not job.wait(_STUCK_SECONDS):
            raise ReadError(
                f"the disk was not measured: {self._file.path} did not answer for "
                f"{_STUCK_SECONDS:.0f} s"
            )
        if job.error is not None:
            raise job.error
        return len(ends) * chunk_bytes / max(max(ends) - began, 1e-9)

    def _span(self, chunk_bytes: int) -> Sequence[int]:
        """Offsets of neighbouring chunks from a place drawn at random; the file is a ring."""
        count = self._file.nbytes // chunk_bytes
        if count == 0:
            raise ReadError(
                f"the disk was not measured: {self._file.path} has only "
                f"{format_bytes(self._file.nbytes)}, name a file of at least "
                f"{format_bytes(chunk_bytes)} or a folder"
            )
        first = self._places.randrange(count)
        most = max(1, _SPAN_BYTES // chunk_bytes)
        return [(first + step) % count * chunk_bytes for step in range(min(count, most))]


def _nothing() -> None:
    """A job that ends without more to do."""
