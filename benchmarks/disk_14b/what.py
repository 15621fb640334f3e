"""Owns what the 14B benchmark runs, and what it is held against: clips, limit, bound, targets."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

VARIANT = "wan2.1-t2v-14b"
LIMIT = 4 * 10**9
OPENING_SECONDS = 10.0
OVER_BOUND = 1.1
ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip to be made: frames, and pixels of width and height."""

    frames: int
    width: int
    height: int

    @property
    def latent(self) -> tuple[int, int, int]:
        return ((self.frames - 1) // 4 + 1, self.height // 8, self.width // 8)

    @property
    def tokens(self) -> int:
        frames, height, width = self.latent
        return frames * (height // 2) * (width // 2)


# One small frame, in which 512 tokens of text take about as long as the disk does, and a clip.
CLIPS = (Clip(1, 32, 32), Clip(5, 256, 144))


@dataclass(frozen=True, slots=True)
class Row:
    """Median seconds of one clip. `compute` is one block in memory, times the blocks."""

    clip: Clip
    forward: float
    compute: float
    read: float

    @property
    def bound(self) -> float:
        return max(self.compute, self.read)

    @property
    def over_bound(self) -> float:
        return self.forward / self.bound


def rows_of(told: dict[str, Any]) -> list[Row]:
    """What the child measured, as rows; reading is the faster of the ways it was tried."""
    read = min(statistics.median(seconds) for seconds in told["raw"].values() if seconds)
    return [
        Row(
            clip,
            statistics.median(row["forwards"]),
            statistics.median(row["blocks"]) * told["streamed"],
            read,
        )
        for clip, row in zip(CLIPS, told["rows"], strict=True)
    ]


def misses(told: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """A sentence for each target that was missed."""
    found = [
        f"{words(row.clip)}: {row.over_bound:.3f} x its bound, {OVER_BOUND} is the target"
        for row in rows
        if row.over_bound > OVER_BOUND
    ]
    if told["opening"] >= OPENING_SECONDS:
        found.append(f"opening took {told['opening']:.1f} s, {OPENING_SECONDS:.0f} is the target")
    return found


def words(clip: Clip) -> str:
    frames = "1 frame" if clip.frames == 1 else f"{clip.frames} frames"
    return f"{frames}, {clip.width}x{clip.height}, {clip.tokens} tokens"
