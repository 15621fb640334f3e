"""The host memory that a unit's slab is read into: one stretch, or a few that lie apart.

torch's host allocator rounds each pinned allocation up to a power of two, so a staging buffer is
made of a few powers of two (`layout.slab.staging_chunks`), and the slab crosses from one to the
next wherever it happens to:

    slab      |0 ................................. nbytes|
    stretches |512 MiB             |128 MiB  |32 MiB   ..|
"""

import ctypes
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Landing:
    """`starts[i]` is the slab offset at which the stretch at `addresses[i]` begins; the first is 0.

    Stretches begin at sector boundaries of both, but for what lies behind the last whole sector.
    """

    starts: tuple[int, ...]
    addresses: tuple[int, ...]

    @classmethod
    def at(cls, address: int) -> "Landing":
        """Memory in one piece."""
        return cls((0,), (address,))

    def spans(self, start: int, nbytes: int) -> Iterator[tuple[int, int, int]]:
        """Splits slab bytes [start, start + nbytes) where stretches end.

        Yields (start, size, base): slab offset o of the part lies at address `base + o`.
        """
        end = start + nbytes
        while start < end:
            i = self._stretch(start)
            last = min(end, self.starts[i + 1]) if i + 1 < len(self.starts) else end
            yield start, last - start, self.addresses[i] - self.starts[i]
            start = last

    def move_up(self, source: int, target: int, nbytes: int) -> None:
        """Moves slab bytes from `source` up to `target`; the two may overlap."""
        while nbytes:  # last bytes first: what is overwritten has been moved already
            i, j = self._stretch(source + nbytes - 1), self._stretch(target + nbytes - 1)
            size = min(nbytes, source + nbytes - self.starts[i], target + nbytes - self.starts[j])
            nbytes -= size
            ctypes.memmove(
                self.addresses[j] + target + nbytes - self.starts[j],
                self.addresses[i] + source + nbytes - self.starts[i],
                size,
            )

    def _stretch(self, offset: int) -> int:
        return bisect_right(self.starts, offset) - 1
