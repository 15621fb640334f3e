"""Rows of a packed weight: which of its stored bytes they are, where rows are packed by themselves.

Libraries split what a file has in one (queries, keys and values) by rows. A row of GGML's blocks is
whole blocks; a scale is one for all rows, or for so many of them, or lies in a tile of 128 rows.
Rows between those bounds are a range of each stored tensor.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from .checkpoint import Packing, StoredTensor

_TILED = {"mxfp8": 128, "nvfp4": 128}  # rows of a tile of scales


def packed_rows(tensor: StoredTensor, start: int, shape: Sequence[int]) -> StoredTensor | None:
    """Rows of a packed matrix from its number `start` on, as a packed weight of that `shape`.

    None where they have no packed form of their own.
    """
    packing = tensor.packing
    if packing is None or len(tensor.shape) != 2 or len(shape) != 2:
        return None
    rows, columns = tensor.shape
    if shape[1] != columns or start % columns or rows == 0:
        return None
    first, count = start // columns, shape[0]
    parts = _parts(packing, rows, first, count)
    if parts is None:
        return None
    grid = (max(1, packing.grid[0] * count // rows), packing.grid[1])
    whole = tuple(shape)
    made = replace(packing, parts=parts, grid=grid, shape=whole)
    nbytes = sum(part.nbytes for part in parts)
    return replace(tensor, shape=whole, nbytes=nbytes, packing=made)


def _parts(packing: Packing, rows: int, first: int, count: int) -> tuple[StoredTensor, ...] | None:
    """Ranges of what the weight is packed in; None where a bound goes through one of its scales."""
    weight, *scales = packing.parts
    lines = weight.shape[0] // rows  # GGML's blocks stand one behind the other, several in a row
    if weight.shape[0] % rows:
        return None
    shape = (lines * count, *weight.shape[1:])
    found = [_range(weight, rows, first, count, shape)]
    height = _TILED.get(packing.format, rows // packing.grid[0])
    for scale in scales:
        if packing.grid[0] == 1 or prod(scale.shape) == 1:
            found.append(scale)
        elif first % height or (count % height and first + count < rows):
            return None
        else:
            runs = -(-rows // height), first // height, -(-count // height)
            found.append(_range(scale, *runs, (prod(scale.shape) * runs[2] // runs[0],)))
    return tuple(found)


def _range(
    part: StoredTensor, runs: int, first: int, count: int, shape: tuple[int, ...]
) -> StoredTensor:
    """Of `runs` equal pieces of a tensor those from `first` on, as a tensor of that shape."""
    nbytes = part.nbytes // runs
    return replace(part, shape=shape, offset=part.offset + first * nbytes, nbytes=count * nbytes)
