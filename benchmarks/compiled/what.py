"""Owns the case: blocks of the 1.3B, how many tokens they compute with, and the target."""

from dataclasses import dataclass

from benchmarks.shared.paired import median_ratio

BLOCKS = 4
TEXT_TOKENS = 512
LATENT = (3, 60, 32)  # frames, height and width; a block computes longer than it is read
TOKENS = 1440
ROUNDS = 7
TARGET_RATIO = 1.05


@dataclass(frozen=True, slots=True)
class Row:
    """Processor seconds of one forward, in memory and streamed, in rounds taken in turn.

    `graphs`: how many graphs Inductor compiled for the streamed model. `waited`: seconds of all
    forwards in which a block waited for its bytes, None where the device does not tell.
    """

    what: str
    whole: tuple[float, ...]
    streamed: tuple[float, ...]
    graphs: int
    equal: bool
    waited: float | None = None

    @property
    def ratio(self) -> float:
        return median_ratio(self.streamed, self.whole)

    @property
    def meets(self) -> bool:
        return self.ratio <= TARGET_RATIO
