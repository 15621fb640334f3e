"""Owns the cases: one block of the 1.3B, how many tokens, in pieces of which sizes; the target."""

from dataclasses import dataclass
from statistics import median

DIM, FFN_DIM, HEADS, TEXT_TOKENS = 1536, 8960, 12, 512  # of Wan2.1 T2V 1.3B
TOKENS = 4320  # 9 latent frames of 30 x 16 patches
SIZES = (2048, 1024)
ROUNDS = 5
TARGET_RATIO = 1.03


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of the processor for one forward, whole and in pieces, in rounds taken in turn."""

    chunk_tokens: int
    whole: tuple[float, ...]
    pieces: tuple[float, ...]
    equal: bool

    @property
    def ratio(self) -> float:
        """The median of the rounds' own ratios."""
        return median(p / w for p, w in zip(self.pieces, self.whole, strict=True))

    @property
    def meets(self) -> bool:
        return self.ratio <= TARGET_RATIO
