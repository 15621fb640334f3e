"""The RAM store: weights of a model moved unit by unit into pinned memory and back, never doubled.

Opening moves one unit at a time: its leaves are copied into the arena and each leaf tensor is
pointed at its copy, which frees the old memory. The tensor objects stay the same ones, so code
that holds a parameter keeps seeing its value. Closing moves every unit back the same way.
"""

from collections.abc import Callable, Sequence

import torch

from ..layout.values import UnitLayout
from .arena import Arena, Lender, pageable
from .leaves import bare_copy, leaf_tensors


class RamStore:
    """Streamed units of a live module, resting in the arena. Owns the arena's memory."""

    def __init__(
        self,
        units: Sequence[UnitLayout],
        *,
        lender: Lender,
        pin_budget: int,
        unpinned: Callable[[int], torch.Tensor] = pageable,
    ) -> None:
        """`unpinned` gives the memory of what `lender` did not pin."""
        self._arena = Arena(units, lender=lender, pin_budget=pin_budget, unpinned=unpinned)
        self._adopted: dict[int, tuple[torch.Tensor, ...]] = {}

    @property
    def pinned_bytes(self) -> int:
        return self._arena.pinned_bytes

    @property
    def pageable_bytes(self) -> int:
        return self._arena.pageable_bytes

    def slab_offsets(self, index: int) -> tuple[int, ...]:
        """Byte offset of each leaf in the unit's slab."""
        return self._arena.packing.units[index].slab.offsets

    def slab_bytes(self, index: int) -> int:
        """Bytes of the unit's slab."""
        return self._arena.packing.units[index].slab.nbytes

    def runs(self, index: int) -> list[tuple[torch.Tensor, int]]:
        """(host bytes, slab offset) of each copy that brings the unit to the device."""
        return self._arena.runs(index)

    def is_pinned(self, index: int) -> bool:
        return self._arena.is_pinned(index)

    def adopt(self, index: int, tensors: Sequence[torch.Tensor]) -> None:
        """Re-homes the unit's tensors (in layout order) into the arena.

        If memory runs out half-way, the leaves already moved are valid where they are: each is
        pointed at its copy only after the copy is whole.
        """
        self._adopted[index] = tuple(tensors)
        leaves = [leaf for tensor in tensors for _, leaf in leaf_tensors(tensor)]
        for leaf, home in zip(leaves, self._arena.take(index), strict=True):
            home.copy_(leaf.detach())
            leaf.data = home

    def fill(
        self, index: int, leaves: Sequence[torch.Tensor], *, copies: bool = True
    ) -> list[torch.Tensor]:
        """Copies `leaves`, cast where dtypes differ, into the unit's place; returns its views.

        Without `copies` another process does it, which has the same memory.
        """
        homes = self._arena.take(index)
        for home, leaf in zip(homes, leaves, strict=True):
            if copies:
                home.copy_(leaf)
        return homes

    def give_back(self, index: int) -> None:
        """Moves the unit's tensors into memory of their own and releases its place."""
        for tensor in self._adopted.pop(index, ()):
            for _, leaf in leaf_tensors(tensor):
                leaf.data = bare_copy(leaf)
        self._arena.release(index)
