"""A slab is one flat run of bytes that holds all leaves of a unit; this room owns their offsets.

slab of "blocks.3"   |q.weight      |q.bias|..|k.weight      |..|modulation|
offsets              0              A      .. B                 Z          nbytes
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .values import Leaf

# CUDA's allocator aligns to 512 and kernels are chosen by alignment up to 256: views of a slab
# start where a tensor of their own could have started, so the same kernels run.
LEAF_ALIGNMENT = 256


def align_up(nbytes: int, alignment: int) -> int:
    """The least multiple of `alignment` that is not below `nbytes`."""
    return -(-nbytes // alignment) * alignment


# Host memory that a slab is staged in lies in at most so many chunks, one copy each.
MAX_CHUNKS = 4


def staging_chunks(nbytes: int) -> tuple[int, ...]:
    """Powers of two, largest first, that hold `nbytes`: what a staging buffer really locks.

    torch's host allocator rounds each pinned allocation up to a power of two. The last of
    `MAX_CHUNKS` takes all that is left: at most 1/15 more than `nbytes` is locked.
    """
    chunks: list[int] = []
    left = nbytes
    while left > 0:
        power = 1 << (left.bit_length() - 1)
        if len(chunks) == MAX_CHUNKS - 1 and power < left:
            power *= 2
        chunks.append(power)
        left -= power
    return tuple(chunks)


@dataclass(frozen=True, slots=True)
class Slab:
    """Byte offset of each leaf of a unit, in the unit's leaf order, and the slab's size."""

    nbytes: int
    offsets: tuple[int, ...]


def pack(leaves: Sequence[Leaf], alignment: int = LEAF_ALIGNMENT) -> Slab:
    """Lays leaves one behind the other, each at a multiple of `alignment` bytes."""
    offsets, end = [], 0
    for leaf in leaves:
        start = align_up(end, alignment)
        offsets.append(start)
        end = start + leaf.nbytes
    return Slab(nbytes=align_up(end, alignment), offsets=tuple(offsets))
