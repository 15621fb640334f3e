"""Which modules are swapped at this moment, so that no block is streamed by two swaps."""

import weakref
from collections.abc import Iterable

import torch

# By the root of each open swap, the modules of its units. The entry goes with its root.
_units: "weakref.WeakKeyDictionary[torch.nn.Module, frozenset[torch.nn.Module]]" = (
    weakref.WeakKeyDictionary()
)


def opened(root: torch.nn.Module, units: Iterable[torch.nn.Module]) -> None:
    """A swap of `root` streams `units` from here on."""
    _units[root] = frozenset(units)


def ended(root: torch.nn.Module) -> None:
    """The swap of `root` has given everything back."""
    _units.pop(root, None)


def overlapping(model: torch.nn.Module) -> torch.nn.Module | None:
    """A swapped model that `model` holds, lies in or shares a block with, or None."""
    own = set(model.modules())
    for root, units in list(_units.items()):
        if root in own or not own.isdisjoint(units) or model in set(root.modules()):
            return root
    return None
