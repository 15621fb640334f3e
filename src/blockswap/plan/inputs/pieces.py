"""Of how many tokens a piece of a forward may be, and what a forward in such pieces needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...selection.args import LEAST_PIECE as LEAST_TOKENS

__all__ = ["LEAST_TOKENS", "PIECE_SIZES", "InPieces", "joined", "sizes_below"]

# What a plan chooses from where the whole does not fit, the larger first. Below 2,048 rows kernels
# lose speed: a product of so many rows and 5,120 columns is 640 tiles of 128 x 128, some for each
# of a card's processors, and 2,048 FLOPs for each byte of a weight in 16 bits; with fewer rows
# processors idle and weights are read more often than their products take. Above 4,096 nothing
# is gained by that arithmetic, and each 2,048 tokens of the 14B cost 0.14 GiB.
PIECE_SIZES = (4096, 2048)


@dataclass(frozen=True)
class InPieces:
    """What a forward needs beside weights and slots when its blocks run in pieces.

    `activations` gives the bytes for pieces of so many tokens: it follows the very forward, or
    looks up what that gave, so it is asked only where the whole does not fit. `sizes` are tried in
    this order; none is as large as the clip. `margin` gives the bytes kept free beside activations.
    """

    sizes: tuple[int, ...]
    activations: Callable[[int], int]
    margin: Callable[[int], int]


def sizes_below(tokens: int) -> tuple[int, ...]:
    """The sizes of pieces that cut a clip of so many tokens at all."""
    return tuple(size for size in PIECE_SIZES if size < tokens)


def joined(models: Sequence[InPieces | None]) -> InPieces | None:
    """Of models that run in turn: the larger need counts; None where one cannot run in pieces."""
    known = [model for model in models if model is not None]
    if not known or len(known) < len(models):
        return None
    sizes = tuple(s for s in known[0].sizes if all(s in model.sizes for model in known))
    return InPieces(
        sizes=sizes,
        activations=lambda tokens: max(model.activations(tokens) for model in known),
        margin=known[0].margin,
    )
