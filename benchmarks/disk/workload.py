"""What a forward is given: how many tokens of video and of text."""

from dataclasses import dataclass
from math import isqrt


@dataclass(frozen=True, slots=True)
class Clip:
    """`tokens` of one frame's latents, patches of 2 x 2, and `text` tokens beside them."""

    tokens: int
    text: int

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width in latent pixels, as square as the number of tokens allows."""
        rows = next(n for n in range(isqrt(self.tokens), 0, -1) if self.tokens % n == 0)
        return 2 * rows, 2 * (self.tokens // rows)
