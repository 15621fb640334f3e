"""Which modules are swapped at this moment, so that no block is streamed by two swaps."""

import weakref
from collections.abc import Iterable
from typing import TypeAlias

import torch

from ...adapters.families import bare

_Modules: TypeAlias = "weakref.WeakSet[torch.nn.Module]"
# By the root of each open swap, the modules of its units. Weak on both sides: a swapped block's
# hooks lead to its root, and a model that is dropped must go.
_units: "weakref.WeakKeyDictionary[torch.nn.Module, _Modules]" = weakref.WeakKeyDictionary()


def opened(root: torch.nn.Module, units: Iterable[torch.nn.Module]) -> None:
    """A swap of `root` streams `units` from here on."""
    _units[root] = weakref.WeakSet(units)


def ended(root: torch.nn.Module) -> None:
    """The swap of `root` has given everything back."""
    _units.pop(root, None)


def is_swapped(model: torch.nn.Module) -> bool:
    """Whether the model, or the one inside a `torch.compile` wrapper, is swapped itself."""
    return bare(model) in _units


def overlapping(model: torch.nn.Module) -> torch.nn.Module | None:
    """A swapped model that `model` holds, lies in or shares a block with, or None."""
    own = set(model.modules())
    for root, units in list(_units.items()):
        if root in own or not own.isdisjoint(units) or model in set(root.modules()):
            return root
    return None
