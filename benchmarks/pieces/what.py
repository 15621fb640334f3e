"""Owns the cases: one block of the 1.3B, how many tokens, in pieces of which sizes; the target."""

from dataclasses import dataclass

from benchmarks.shared.paired import median_ratio

TEXT_TOKENS = 512
LATENT = (9, 60, 32)  # frames, height and width; a patch is 1 x 2 x 2
TOKENS = 4320
SIZES = (2048, 1024, 512, 256, 128)
AIMED = (2048, 1024)  # the others show from where on the CPU's kernels lose speed
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
        return median_ratio(self.pieces, self.whole)

    @property
    def meets(self) -> bool | None:
        """None for a size that nothing is aimed at."""
        return self.ratio <= TARGET_RATIO if self.chunk_tokens in AIMED else None
