"""Joining: a tensor that a file holds in several pieces, one behind the other in memory.

Rows of other tensors, put together again where a library's converter concatenates or swaps them.
"""

from collections.abc import Sequence

from ..layout.values import Leaf
from .steps import Join
from .unit_decoding import LeafForm


def joined_form(stored: Sequence[Leaf], computed: Leaf) -> LeafForm:
    """The form of a leaf that rests in the file as several pieces, in order."""
    return LeafForm(tuple(stored), computed, (Join(tuple(stored), computed),))
