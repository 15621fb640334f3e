"""Scratch: how the arrays that a step needs for a moment are laid out in its part of the buffer.

A step dequantises in pieces of at most `PIECE_ELEMENTS`, so its scratch has a bound whatever the
size of the weight, and a piece mostly stays in the device's cache between its operations.
"""

import math
from collections.abc import Sequence

import torch

from ..layout.dtypes import ITEM_BYTES
from ..layout.slab import LEAF_ALIGNMENT, align_up
from ..layout.values import contiguous_stride

PIECE_ELEMENTS = 8 * 1024 * 1024

# (dtype as torch spells it, shape) of each array.
Arrays = Sequence[tuple[str, tuple[int, ...]]]


def scratch_bytes(arrays: Arrays) -> int:
    """Bytes that the arrays take together."""
    return sum(align_up(_nbytes(dtype, shape), LEAF_ALIGNMENT) for dtype, shape in arrays)


def carve(scratch: torch.Tensor, arrays: Arrays) -> list[torch.Tensor]:
    """Views of `scratch` (uint8 `[bytes]`), one for each array."""
    views, at = [], 0
    for dtype, shape in arrays:
        nbytes = _nbytes(dtype, shape)
        flat = scratch.narrow(0, at, nbytes).view(getattr(torch, dtype))
        views.append(flat.as_strided(shape, contiguous_stride(shape)))
        at += align_up(nbytes, LEAF_ALIGNMENT)
    return views


def pieces(total: int, step: int) -> list[tuple[int, int]]:
    """(first, count) of each piece of `total` things, `step` at a time."""
    return [(at, min(step, total - at)) for at in range(0, total, step)]


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * ITEM_BYTES[dtype]
