"""What the MiniMax-H3 benchmark runs, and what it is held against: clips, limit, bound, targets."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from blockswap.plan.inputs.workload import Workload
from blockswap.predict.subject import PublishedSubject, Wish
from blockswap.published import PUBLISHED

BLOCKS = 20  # of 50, which would be 66 GB
MODEL = replace(PUBLISHED["minimax-h3"], config={"num_layers": BLOCKS})
SUBJECT = PublishedSubject(MODEL.family, MODEL.config)
LIMIT = 6 * 10**9
OPENING_SECONDS = 10.0
OVER_BOUND = 1.1
ROUNDS = 2
LISTS = ("token_refiner.refiner_blocks", "transformer_blocks")


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip to be made: frames, pixels of width and height, tokens of its prompt."""

    frames: int
    width: int
    height: int
    text: int

    @property
    def workload(self) -> Workload:
        clip = SUBJECT.clip(Wish((self.width, self.height), self.frames))
        return replace(clip, text_tokens=self.text)


# The least that there is, in which the disk binds, and one in which compute begins to.
CLIPS = (Clip(5, 64, 64, 16), Clip(22, 256, 160, 128))


@dataclass(frozen=True, slots=True)
class Row:
    """Median seconds of one clip. `compute`: one block of each list in memory, times the blocks."""

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
            sum(
                statistics.median(seconds) * told["streamed"][path]
                for path, seconds in row["blocks"].items()
            ),
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
    return f"{clip.frames} frames, {clip.width}x{clip.height}, {clip.text} tokens of text"
