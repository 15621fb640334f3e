"""Rows of a packed weight: which of its stored bytes they are, where rows are packed by themselves.

Libraries split what a file has in one (queries, keys and values) by rows. A row of GGML's blocks is
whole blocks; of 8-bit weights a scale is one for all, or one or more a row.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from .checkpoint import Packing, StoredTensor

_BY_ROWS = ("fp8 scaled", "fp8 in groups", "int8 scaled", "int8 rotated", "quanto")


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
    parts = _parts(packing, rows, start // columns, shape[0])
    if parts is None:
        return None
    grid = (shape[0], packing.grid[1]) if packing.grid[0] == rows > 1 else packing.grid
    whole = tuple(shape)
    made = replace(packing, parts=parts, grid=grid, shape=whole)
    nbytes = sum(part.nbytes for part in parts)
    return replace(tensor, shape=whole, nbytes=nbytes, packing=made)


def _parts(packing: Packing, rows: int, first: int, count: int) -> tuple[StoredTensor, ...] | None:
    weight, *scales = packing.parts
    by_rows = packing.format in _BY_ROWS and packing.grid[0] in (1, rows)
    if not (packing.format.startswith("GGUF ") or by_rows):
        return None
    found = [_rows_of(weight, rows, first, count)]
    for scale in scales:
        one = prod(scale.shape) == 1 or packing.grid[0] == 1
        found.append(scale if one else _rows_of(scale, rows, first, count))
    return None if None in found else tuple(part for part in found if part is not None)


def _rows_of(part: StoredTensor, rows: int, first: int, count: int) -> StoredTensor | None:
    """The bytes of some rows; GGML's blocks stand one behind the other, several in a row."""
    lines, bytes_a_row = part.shape[0] * count, part.nbytes // rows
    if part.nbytes % rows or lines % rows:
        return None
    return replace(
        part,
        shape=(lines // rows, *part.shape[1:]),
        offset=part.offset + first * bytes_a_row,
        nbytes=count * bytes_a_row,
    )
