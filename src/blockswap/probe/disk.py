"""The disk of a folder, read the way the product reads: how fast, and with which settings best.

One setting is tried at a time, others held: direct or buffered, then the number of readers, then
the size of a read. Each trial reads one span at a place of its own choosing, as a block is read.
The product's own settings are the first to be tried, and stay unless others are clearly better.
"""

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..errors import OutputError, ReadError
from ..plan.machine import DiskFigures
from ..store.file_io import StreamedFile, memory_at
from ..store.file_slab import SECTOR
from ..store.readers import Job, ReaderPool
from ..stream.device import aligned, host_buffer
from ..units import GIB, MIB, format_bytes, format_rate
from .scratch import ProbeFile, forget_pages, probe_file
from .values import Limits, Trial

Clock = Callable[[], float]

# A setting must beat the one in use by this factor, twice: less is the noise of a disk, and not
# worth more threads, or copies through the page cache that take cores away from the blocks.
CLEARLY = 1.1
# Reads of one trial land here, again and again: what they bring is not looked at.
_BUFFER_BYTES = 64 * MIB
# One trial reads no more, however fast the disk.
_SPAN_BYTES = GIB
_ROUNDS = 3
# A disk that answers nothing for so long is not measured.
_STUCK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to read: with O_DIRECT if it can be had, with how many threads, in what chunks."""

    direct: bool
    readers: int
    chunk_bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of a disk, None where it could not be measured, and what is to be told of it."""

    figures: DiskFigures | None
    trials: tuple[Trial, ...]
    sentences: tuple[str, ...]


def measure_disk(
    place: Path, limits: Limits, *, clock: Clock = time.perf_counter, seed: int | None = None
) -> Measured:
    """Measures the disk that `place` (a folder, or a file to read from) lies on.

    Takes about `limits.disk_seconds` plus the writing of a scratch file, and 64 MiB of memory.
    A disk that cannot be measured is told in a sentence, and raises nothing.
    """
    try:
        with probe_file(place, limits.scratch_bytes) as file:
            return _Search(file, limits, clock, random.Random(seed)).run()
    except (OutputError, ReadError) as error:
        return Measured(None, (), (str(error),))
    except OSError as error:
        cause = error.strerror or str(error)
        return Measured(None, (), (f"the disk at {place} was not measured: {cause}",))


class _Search:
    """The settings of one file, tried within a time."""

    def __init__(
        self, file: ProbeFile, limits: Limits, clock: Clock, places: random.Random
    ) -> None:
        self._file = file
        self._limits = limits
        self._clock = clock
        self._places = places
        self._memory = host_buffer(_BUFFER_BYTES + SECTOR)
        self._memory.zero_()  # the pages are there before the first read
        self._rounds: dict[Setting, list[float]] = {}
        self._modes: dict[Setting, str] = {}
        self._sentences: list[str] = []
        self._left_out = 0

    def run(self) -> Measured:
        settings = len(self._limits.readers) + len(self._limits.chunks)  # the first of both is one
        share = self._limits.disk_seconds / (settings + 2)  # some are tried twice
        self._end = self._clock() + self._limits.disk_seconds
        best = Setting(True, self._limits.readers[0], self._limits.chunks[0])
        best = self._better(best, self._without_direct(best), share)
        others = (Setting(best.direct, count, best.chunk_bytes) for count in self._limits.readers)
        best = self._better(best, others, share)
        others = (Setting(best.direct, best.readers, chunk) for chunk in self._limits.chunks)
        best = self._better(best, others, share)
        direct = self._modes[best] == "direct"
        self._tell()
        return Measured(
            DiskFigures(self._rate(best), best.readers, best.chunk_bytes, direct),
            self._trials(),
            tuple(self._sentences),
        )

    def _without_direct(self, setting: Setting) -> Iterator[Setting]:
        """The same, buffered; where direct reads cannot be had it would be the same again."""
        if self._modes[setting] == "direct":
            yield Setting(False, setting.readers, setting.chunk_bytes)

    def _better(self, best: Setting, others: Iterator[Setting], share: float) -> Setting:
        """The first of `best` and `others` that none of the others clearly beats."""
        if best not in self._rounds:
            self._try(best, share)
        for other in others:
            if other in self._rounds:
                continue
            if not self._affordable(other):
                self._left_out += 1
                continue
            self._try(other, share)
            if self._beats(other, best) and self._affordable(best):
                # The disk may have been busy with something else just then.
                self._try(best, share / 2)
                self._try(other, share / 2)
            if self._beats(other, best):
                best = other
        return best

    def _beats(self, other: Setting, best: Setting) -> bool:
        return self._rate(other) > self._rate(best) * CLEARLY

    def _rate(self, setting: Setting) -> float:
        return statistics.median(self._rounds[setting])

    def _affordable(self, setting: Setting) -> bool:
        """Whether its least number of reads ends in time, at the best rate so far."""
        least = setting.readers * setting.chunk_bytes
        return self._clock() + least / max(map(self._rate, self._rounds)) < self._end

    def _try(self, setting: Setting, share: float) -> None:
        rounds = self._rounds.setdefault(setting, [])
        end = self._clock() + share
        for number in range(_ROUNDS):
            if number == 0 or self._clock() < end:
                rounds.append(self._round(setting, share / _ROUNDS))

    def _round(self, setting: Setting, seconds: float) -> float:
        """Bytes per second of one span, or of as much of it as fits the time."""
        if not forget_pages(self._file.path) and not self._sentences:
            self._sentences.append(
                "this system cannot be asked to drop a file from its cache: the disk may be slower "
                "than measured"
            )
        file = StreamedFile(self._file, direct=setting.direct)
        pool = ReaderPool(setting.readers)
        try:
            pool.submit(Job([], _nothing))  # the threads are there before the clock runs
            reads = _Reads(file, self._memory, setting.chunk_bytes, self._clock)
            return reads.rate(pool, self._span(setting), seconds)
        finally:
            self._modes[setting] = file.mode
            pool.close(1.0)  # nothing is left to do unless the disk is stuck
            file.close()

    def _span(self, setting: Setting) -> Sequence[int]:
        """Offsets of neighbouring chunks from a place drawn at random; the file is a ring."""
        chunk = setting.chunk_bytes
        count = self._file.nbytes // chunk
        if count == 0:
            raise ReadError(
                f"the disk was not measured: {self._file.path} has "
                f"{format_bytes(self._file.nbytes)}, name a file of at least {format_bytes(chunk)}"
            )
        first = self._places.randrange(count)
        most = max(1, _SPAN_BYTES // chunk)
        return [(first + step) % count * chunk for step in range(min(count, most))]

    def _trials(self) -> tuple[Trial, ...]:
        return tuple(
            Trial(self._modes[tried], tried.readers, tried.chunk_bytes, self._rate(tried))
            for tried in self._rounds
        )

    def _tell(self) -> None:
        modes = set(self._modes.values())
        first = Setting(True, self._limits.readers[0], self._limits.chunks[0])
        buffered = Setting(False, first.readers, first.chunk_bytes)
        if buffered in self._rounds:
            self._sentences.append(
                f"O_DIRECT reads {format_rate(self._rate(first))}, buffered reads with the pages "
                f"dropped behind {format_rate(self._rate(buffered))}"
            )
        elif "plain" in modes:
            self._sentences.append("reads are plain ones: this platform has no os.preadv")
        elif "direct" not in modes:
            why = (
                "the file system refuses it"
                if hasattr(os, "O_DIRECT")
                else "this platform has none"
            )
            self._sentences.append(f"reads are buffered ones, without O_DIRECT: {why}")
        if self._left_out:
            self._sentences.append(
                f"{self._left_out} of the settings were left out: the time was up"
            )


class _Reads:
    """Reads of chunks into one buffer, by a pool of readers, until the time is up."""

    def __init__(
        self, file: StreamedFile, memory: torch.Tensor, chunk_bytes: int, clock: Clock
    ) -> None:
        self._file = file
        self._memory = memory
        self._address = aligned(memory, _BUFFER_BYTES).data_ptr()
        self._places = _BUFFER_BYTES // chunk_bytes
        self._chunk_bytes = chunk_bytes
        self._clock = clock

    def rate(self, pool: ReaderPool, offsets: Sequence[int], seconds: float) -> float:
        """Bytes per second over all readers. Raises what a read raised."""
        done: list[float] = []
        began = self._clock()
        end = began + seconds

        def read(number: int, offset: int) -> None:
            # The first read is made whatever the time: without it there is no figure.
            if number and self._clock() > end:
                return
            at = self._address + number % self._places * self._chunk_bytes
            self._file.read(offset, memory_at(at, self._chunk_bytes), self._chunk_bytes)
            done.append(self._clock())

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
        return len(done) * self._chunk_bytes / max(max(done) - began, 1e-9)


def _nothing() -> None:
    """A job that ends without more to do."""
