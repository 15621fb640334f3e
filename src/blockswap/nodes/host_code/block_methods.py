"""By which methods the host may run a block beside its call: those that work with its parts.

Newer cores have blocks that are never called as modules: their model calls one method for the video
and another for what drives it.
"""

from typing import Any

import torch

from .words import works_with

_CALLED = frozenset({"forward", *dir(torch.nn.Module)})  # by a call, or by torch


def methods_of(block: torch.nn.Module) -> tuple[str, ...]:
    """Names of the methods of a block's class that work with its parts or its weights."""
    own = {
        name: value
        for kind in reversed(type(block).__mro__)
        if not kind.__module__.startswith("torch.")
        for name, value in vars(kind).items()
        if name not in _CALLED and not name.startswith("__") and callable(value)
    }
    reached = {
        name for name, _ in (*block.named_children(), *block.named_parameters(recurse=False))
    }
    found: set[str] = set()
    while more := {n for n in own.keys() - found if works_with(_plain(own[n])) & reached}:
        found |= more
        reached |= more
    return tuple(sorted(found))


def _plain(method: Any) -> Any:
    return getattr(method, "__func__", method)
