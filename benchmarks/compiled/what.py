"""Owns the case: blocks of the 1.3B, how many tokens they compute with, and the target."""

from dataclasses import dataclass
from statistics import median

DIM, FFN_DIM, HEADS, TEXT_TOKENS = 1536, 8960, 12, 512  # of Wan2.1 T2V 1.3B
BLOCKS = 4
TOKENS = 1440  # 3 latent frames of 30 x 16 patches: a block computes longer than it is read
ROUNDS = 7
TARGET_RATIO = 1.05


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of one forward, in memory and streamed, in rounds taken in turn.

    `graphs`: how many graphs Inductor compiled for the streamed model.
    """

    what: str
    whole: tuple[float, ...]
    streamed: tuple[float, ...]
    graphs: int
    equal: bool

    @property
    def ratio(self) -> float:
        """The median of the rounds' own ratios."""
        return median(s / w for s, w in zip(self.streamed, self.whole, strict=True))

    @property
    def meets(self) -> bool:
        return self.ratio <= TARGET_RATIO
