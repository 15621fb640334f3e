"""Whether other code has put its own in the place of what a block computes with, for all models.

Such code may look at all tokens that it is handed, as attention for long clips or quantising by the
largest value do, and pieces would hand it a few. So blocks run whole then.
"""

import functools
import os
import sys
from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F

_OWN = "blockswap."
# Of torch: what layers and attention end in.
_OF_TORCH: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (F, ("gelu", "layer_norm", "linear", "rms_norm", "scaled_dot_product_attention", "silu")),
    (torch, ("addcmul", "layer_norm", "matmul", "rms_norm")),
)
_Place = tuple[dict[str, Any], str]  # a module's names, and one of them


def why_replaced(block: torch.nn.Module) -> str | None:
    """What of a block's classes, or of torch, was not written by their own packages, in words."""
    for space, name in _torch():
        if not _is_of(space[name], "torch"):
            return f"{space['__name__']}.{name} was replaced by other code"
    for kind in _kinds(block):
        forward, package = vars(kind).get("forward"), kind.__module__.partition(".")[0]
        if forward is None:
            continue
        if not _is_of(forward, package):
            return f"the forward of {kind.__name__} was replaced by other code"
        for space, name in _functions_of(forward):
            if not _is_of(space[name], package):
                return f"{space.get('__name__')}.{name} was replaced by other code"
    return None


class Works:
    """What a block works with: forwards of its classes, functions they name, and torch's."""

    def __init__(self, block: torch.nn.Module) -> None:
        self._forwards = {kind: vars(kind).get("forward") for kind in _kinds(block)}
        places = [place for f in self._forwards.values() for place in _functions_of(f)]
        self._functions = [(space, name, space[name]) for space, name in (*places, *_torch())]

    def changed(self) -> str | None:
        """What is not as it was when this was made, in words."""
        for kind, forward in self._forwards.items():
            if vars(kind).get("forward") is not forward:
                return f"the forward of {kind.__name__}"
        for space, name, function in self._functions:
            now = space.get(name)
            if now is not function and not _is_ours(now):
                return f"{space.get('__name__')}.{name}"
        return None


def _kinds(block: torch.nn.Module) -> list[type]:
    kinds = (kind for module in block.modules() for kind in type(module).__mro__)
    return list(dict.fromkeys(kinds))


def _torch() -> Iterator[_Place]:
    return ((vars(place), name) for place, names in _OF_TORCH for name in names)


def _functions_of(forward: Any) -> list[_Place]:
    """The functions that a forward finds by name in its module."""
    if not isinstance(forward, FunctionType):
        return []
    space, names = forward.__globals__, _named(forward.__code__)
    return [(space, name) for name in names if isinstance(space.get(name), FunctionType)]


@functools.lru_cache(maxsize=1024)
def _named(code: CodeType) -> tuple[str, ...]:
    """Names that code and what is written inside it look up."""
    names, inside = set(code.co_names), (p for p in code.co_consts if isinstance(p, CodeType))
    return tuple(sorted(names.union(*map(_named, inside))))


def _is_ours(function: Any) -> bool:
    """Whether it is what a family of ours puts there while a block runs in pieces."""
    return str(getattr(function, "__module__", "")).startswith(_OWN)


def _is_of(function: Any, package: str) -> bool:
    """Whether a function's code was written in a package, in torch or here."""
    if isinstance(function, BuiltinFunctionType):
        return True
    if _is_ours(function):
        return True
    code = getattr(function, "__code__", None)
    homes = (*_homes(package), *_homes("torch"))
    return code is not None and code.co_filename.startswith(homes)


def _homes(package: str) -> tuple[str, ...]:
    """The folders of a package, or the file of a module; all there is where that is not known.

    ComfyUI's has no file of its own, and is made of every folder of its name that Python finds.
    """
    module = sys.modules.get(package)
    file: str | None = getattr(module, "__file__", None)
    if file is None:
        return tuple(f"{path}{os.sep}" for path in getattr(module, "__path__", ())) or ("",)
    folder, name = os.path.split(file)
    return (folder + os.sep if name.startswith("__init__.") else file,)
