"""A forward against its bound, round by round: raw read or compute, measured just beside it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .case import OPENING_SECONDS, OVER_BOUND, Case


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of one forward, of its blocks in memory, and of the faster raw read beside it."""

    forward: float
    compute: float
    read: float

    @property
    def bound(self) -> float:
        return max(self.compute, self.read)

    @property
    def over_bound(self) -> float:
        return self.forward / self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """All rounds of one clip."""

    words: str
    rounds: tuple[Round, ...]

    def median(self, figure: str) -> float:
        return statistics.median(getattr(one, figure) for one in self.rounds)

    def spread(self, figure: str) -> tuple[float, float]:
        found = [getattr(one, figure) for one in self.rounds]
        return min(found), max(found)


def rows_of(case: Case, told: Mapping[str, Any]) -> list[Row]:
    """What the child measured. The disk may change within minutes, so each round is its own."""
    return [
        Row(clip.words, tuple(_round(one, told["streamed"]) for one in row["rounds"]))
        for clip, row in zip(case.clips, told["rows"], strict=True)
    ]


def _round(one: Mapping[str, Any], blocks: Mapping[str, int]) -> Round:
    compute = sum(statistics.median(one["blocks"][path]) * count for path, count in blocks.items())
    return Round(one["forward"], compute, min(one["reads"].values()))


def misses(told: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """A sentence for each target that was missed."""
    found = [
        f"{row.words}: {row.median('over_bound'):.3f} x its bound, {OVER_BOUND} is the target"
        for row in rows
        if row.median("over_bound") > OVER_BOUND
    ]
    if told["opening"] >= OPENING_SECONDS:
        found.append(f"opening took {told['opening']:.1f} s, {OPENING_SECONDS:.0f} is the target")
    return found
