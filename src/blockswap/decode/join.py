"""Joining: a tensor that a file holds in several pieces, one behind the other in memory.

Rows of other tensors, put together again where a library's converter concatenates or swaps them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..layout.values import Leaf
from .steps import Cost
from .unit_decoding import LeafForm


@dataclass(frozen=True, slots=True)
class Join:
    """The pieces one behind the other, each cast as `Tensor.to` casts. Nothing is computed."""

    stored: tuple[Leaf, ...]
    computed: Leaf

    scratch_bytes = 0

    @property
    def takes(self) -> int:
        return len(self.stored)

    @property
    def cost(self) -> Cost:
        return Cost(sum(leaf.nbytes for leaf in self.stored), self.computed.nbytes)

    def prepare(
        self, stored: Sequence[torch.Tensor], out: torch.Tensor, scratch: torch.Tensor
    ) -> Callable[[], None]:
        flat, at, pairs = out.view(-1), 0, []
        for piece in stored:
            pairs.append((flat.narrow(0, at, piece.numel()), piece.view(-1)))
            at += piece.numel()

        def run() -> None:
            for target, source in pairs:
                target.copy_(source)

        return run


def joined_form(stored: Sequence[Leaf], computed: Leaf) -> LeafForm:
    """The form of a leaf that rests in the file as several pieces, in order."""
    return LeafForm(tuple(stored), computed, (Join(tuple(stored), computed),))
