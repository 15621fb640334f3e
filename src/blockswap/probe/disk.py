"""Which settings read a disk best (direct, readers, read size), and how fast; noise is ignored.

One setting is tried at a time, the others held: direct or buffered, then the number of readers,
then the size of a read. The candidates of a stage take turns, so that a disk that is busy with
something else for a while slows all of them down. The product's own settings stay unless others
are clearly better.
"""

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError, ReadError
from ..plan.inputs.machine import DiskFigures
from ..units import format_rate
from .reads import Clock, Setting, TrialReader
from .scratch import probe_file
from .values import Limits, Trial

# A setting must beat the one in use by this factor in every turn: less is the noise of a disk, and
# not worth more threads, or copies through the page cache that take cores away from the blocks.
CLEARLY = 1.1
_ROUNDS = 3


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
            reader = TrialReader(file, clock=clock, seed=seed)
            return _Search(reader, limits, clock).run()
    except (OutputError, ReadError) as error:
        return Measured(None, (), (str(error),))
    except OSError as error:
        cause = error.strerror or str(error)
        return Measured(None, (), (f"the disk at {place} was not measured: {cause}",))


class _Search:
    """The settings of one file, tried within a time."""

    def __init__(self, reader: TrialReader, limits: Limits, clock: Clock) -> None:
        self._reader = reader
        self._limits = limits
        self._clock = clock
        self._end = clock() + limits.disk_seconds
        # One stage of two settings, and one each of all readers and of all chunks.
        tries = _ROUNDS * (2 + len(limits.readers) + len(limits.chunks))
        self._share = limits.disk_seconds / tries
        self._rates: dict[Setting, list[float]] = {}
        self._left_out = 0

    def run(self) -> Measured:
        limits = self._limits
        first = Setting(True, limits.readers[0], limits.chunks[0])
        self._rates[first] = [self._reader.rate(first, self._share)]  # a sleeping disk wakes up
        buffered = Setting(False, first.readers, first.chunk_bytes)
        has_direct = self._reader.modes[first] == "direct"
        best = self._stage(first, [first, buffered]) if has_direct else first
        counts = [Setting(best.direct, count, best.chunk_bytes) for count in limits.readers]
        best = self._stage(best, counts)
        sizes = [Setting(best.direct, best.readers, size) for size in limits.chunks]
        best = self._stage(best, sizes)
        direct = self._reader.modes[best] == "direct"
        figures = DiskFigures(self._rate(best), best.readers, best.chunk_bytes, direct)
        return Measured(figures, self._trials(), self._sentences(first, buffered))

    def _stage(self, used: Setting, candidates: Sequence[Setting]) -> Setting:
        """The candidate that clearly beats the one `used` in every turn, or else the one used."""
        found: dict[Setting, list[float]] = {setting: [] for setting in candidates}
        for _ in range(_ROUNDS):
            for setting in candidates:
                if self._affordable(setting):
                    found[setting].append(self._reader.rate(setting, self._share))
        for setting, rates in found.items():
            self._left_out += not rates
            self._rates.setdefault(setting, []).extend(rates)

        def gain(setting: Setting) -> float:
            turns = zip(found[setting], found[used], strict=False)
            return min((rate / beside for rate, beside in turns), default=0.0)

        best = max(candidates, key=gain)
        return best if gain(best) > CLEARLY else used

    def _affordable(self, setting: Setting) -> bool:
        """Whether every reader's first read ends in time, at the best rate so far."""
        least = setting.readers * setting.chunk_bytes
        rate = max(max(rates) for rates in self._rates.values() if rates)
        return self._clock() + least / rate < self._end

    def _rate(self, setting: Setting) -> float:
        return statistics.median(self._rates[setting])

    def _trials(self) -> tuple[Trial, ...]:
        modes = self._reader.modes
        return tuple(
            Trial(modes[tried], tried.readers, tried.chunk_bytes, self._rate(tried))
            for tried, rates in self._rates.items()
            if rates
        )

    def _sentences(self, first: Setting, buffered: Setting) -> tuple[str, ...]:
        told = [self._mode_words(first, buffered)]
        if not self._reader.forgetful:
            told.append(
                "this system cannot be asked to drop a file from its cache: the disk may be "
                "slower than measured"
            )
        if self._left_out:
            told.append(f"{self._left_out} settings were left out: the time was up")
        return tuple(told)

    def _mode_words(self, first: Setting, buffered: Setting) -> str:
        mode = self._reader.modes[first]
        if mode == "plain":
            return "files are read by plain reads: this platform has no os.preadv"
        if mode == "buffered":
            there = hasattr(os, "O_DIRECT")
            why = "the file system refuses it" if there else "this platform has none"
            return f"files are read through the page cache, without O_DIRECT: {why}"
        words = f"with O_DIRECT the disk reads {format_rate(self._rate(first))}"
        if self._rates.get(buffered):
            beside = format_rate(self._rate(buffered))
            words += f", through the page cache with the pages dropped behind {beside}"
        return words
