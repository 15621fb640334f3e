"""Owns which cards, models and clips the README's forecasts are of."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A card, a model and a clip of (width, height, frames)."""

    card: str
    model: str
    clip: tuple[int, int, int]

    @property
    def command(self) -> str:
        """What a person types for the same figures."""
        width, height, frames = self.clip
        return (
            f'blockswap plan --gpu "{self.card}" --model {self.model} '
            f"--size {width}x{height} --frames {frames} --vae-tiled --text-encoder cpu"
        )


ROWS = (
    Row("RTX 4060", "wan2.1-t2v-1.3b", (832, 480, 81)),
    Row("RTX 4060", "wan2.2-t2v-a14b", (832, 480, 81)),
    Row("RTX 4060", "wan2.2-t2v-a14b", (1280, 720, 81)),
    Row("RTX 4060", "wan2.1-vace-14b", (1280, 720, 81)),
    Row("RTX 4060", "wan2.2-animate-14b", (1280, 720, 77)),
    Row("RTX 4060", "wan2.2-ti2v-5b", (1280, 704, 121)),
    Row("RTX 3060 12GB", "wan2.2-t2v-a14b", (832, 480, 81)),
    Row("RTX 4070", "wan2.2-t2v-a14b", (1280, 720, 81)),
    Row("RTX 3090", "wan2.2-i2v-a14b", (1280, 720, 81)),
    Row("RTX 4090", "wan2.2-t2v-a14b", (1280, 720, 81)),
    Row("RTX 5090", "wan2.2-t2v-a14b", (1280, 720, 81)),
)
