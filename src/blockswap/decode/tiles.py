"""Scales in the tiles that tensor cores take them in, back in rows and columns.

A tile holds 128 x 4 scales; the scale of row r and column c lies at byte
(r % 32) * 16 + (r % 128 // 32) * 4 + c % 4 of its tile, and tiles lie in rows. The source is
`from_blocked` and `e8m0_to_f32` of comfy-kitchen 0.2.
"""

from collections.abc import Callable

import torch

from ..layout.slab import align_up
from .steps import copy

_HIGH, _WIDE = 128, 4
_MANTISSA_BITS = 23


def tiled_shape(grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of whole tiles that hold `grid` scales."""
    return align_up(grid[0], _HIGH), align_up(grid[1], _WIDE)


def from_tiles(tiled: torch.Tensor, plain: torch.Tensor) -> Callable[[], None]:
    """What copies tiled scales into `plain` (fp32, of `tiled_shape`), cast to it.

    Exponents (float8_e8m0fnu) become the power of two that they stand for; zero stays zero.
    """
    rows, columns = plain.shape
    down, across = rows // _HIGH, columns // _WIDE
    if tiled.dtype is not torch.float8_e8m0fnu:
        target, source = _rows_of(plain, down, across), _tiles_of(tiled, down, across)
        return lambda: copy(target, source)
    bits = plain.view(torch.int32)
    target = _rows_of(bits, down, across)
    source = _tiles_of(tiled.view(torch.uint8), down, across)

    def run() -> None:
        target.copy_(source)
        bits.bitwise_left_shift_(_MANTISSA_BITS)

    return run


def _tiles_of(tiled: torch.Tensor, down: int, across: int) -> torch.Tensor:
    """[tile row, quarter, row in it, tile column, column in it]"""
    return tiled.reshape(down, across, 32, 4, _WIDE).permute(0, 3, 2, 1, 4)


def _rows_of(plain: torch.Tensor, down: int, across: int) -> torch.Tensor:
    return plain.view(down, 4, 32, across, _WIDE)
