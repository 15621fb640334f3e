"""Which small tensors of a forward on meta have known values, and what is computed from them.

A forward may ask for values: how many tokens a mask leaves, where a picture ends. Small inputs
that were given with data keep it, and what is computed from nothing but known values is known, too.
"""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

MOST_VALUES = 2**20  # of a tensor that is followed with its values
_INDEXED = frozenset({
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
})  # fmt: skip
_MADE_UP = ("empty", "rand", "new_empty")  # names of operations whose results have no values


class KnownValues:
    """Values on the host, by the meta tensor that stands for them."""

    def __init__(self) -> None:
        self._values: MutableMapping[torch.Tensor, torch.Tensor] = WeakTensorKeyDictionary()

    def learn(self, meta: torch.Tensor, real: torch.Tensor) -> None:
        """Copies what a tensor holds that was there before, where that is little."""
        if real.device.type == "cpu" and real.numel() <= MOST_VALUES:
            self._keep(meta, real.detach().clone())

    def _keep(self, meta: torch.Tensor, value: torch.Tensor) -> None:
        if meta.is_meta and value.device.type == "cpu" and value.numel() <= MOST_VALUES:
            self._values[meta] = value

    def of(self, meta: torch.Tensor) -> torch.Tensor | None:
        """What a meta tensor holds; None where that is not known."""
        return self._values.get(meta)

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation without data; with it, too, where all that it takes is known."""
        if func in _INDEXED:
            args = self._without_masks(args)
        given = self._given(func, args, kwargs)
        try:
            out = func(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            if given is None:
                raise
            return self._told(func(*given[0], **given[1]))  # only values can say it
        if func._schema.is_mutable:
            self._written(func, args, kwargs, given)
        elif given is not None and _is_small(out):
            for meta, value in zip(
                tree_iter(out), tree_iter(func(*given[0], **given[1])), strict=True
            ):
                if isinstance(meta, torch.Tensor):
                    self._keep(meta, value)
        return out

    def _given(self, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """The arguments on the host; None where a value is unknown or the result has none."""
        if not self._values and any(isinstance(leaf, torch.Tensor) for leaf in tree_iter(args)):
            return None
        if func._schema.name.partition("::")[2].startswith(_MADE_UP):
            return None
        if torch.Tag.nondeterministic_seeded in func.tags:
            return None
        unknown = False

        def on_host(leaf: Any) -> Any:
            nonlocal unknown
            if isinstance(leaf, torch.device):
                return torch.device("cpu")
            if isinstance(leaf, torch.Tensor) and leaf.is_meta:
                value = self.of(leaf)
                unknown |= value is None
                return value
            return leaf

        leaves = tree_map(on_host, (args, kwargs))
        return None if unknown else leaves

    def _written(self, func: Any, args: Any, kwargs: Any, given: tuple[Any, Any] | None) -> None:
        """Writes the values, too; where they are unknown, what was written to is so from now on."""
        if given is not None:
            func(*given[0], **given[1])
            return
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write and (before := self._known(value)) is not None:
                self._forget(before)
        for argument in func._schema.arguments:
            if argument.is_write and (before := self._known(kwargs.get(argument.name))) is not None:
                self._forget(before)

    def _known(self, value: Any) -> torch.Tensor | None:
        return self.of(value) if isinstance(value, torch.Tensor) and value.is_meta else None

    def _forget(self, value: torch.Tensor) -> None:
        """Of all views of it."""
        storage = value.untyped_storage()._cdata
        same = [m for m, v in self._values.items() if v.untyped_storage()._cdata == storage]
        for meta in same:
            del self._values[meta]

    def _told(self, out: Any) -> Any:
        def on_meta(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            meta = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
            self._keep(meta, leaf)
            return meta

        return tree_map(on_meta, out)

    def _without_masks(self, args: Any) -> Any:
        """Masks as the positions that they choose: how many those are is in their values."""
        places: list[Any] = []
        for index in args[1]:
            mask = None if index is None else (self.of(index) if index.is_meta else index)
            if mask is None or mask.dtype not in (torch.bool, torch.uint8):
                places.append(index)
                continue
            for position in mask.nonzero(as_tuple=True):
                places.append(self._told(position))
        return (args[0], places, *args[2:])


def _is_small(out: Any) -> bool:
    return all(
        leaf.numel() <= MOST_VALUES for leaf in tree_iter(out) if isinstance(leaf, torch.Tensor)
    )
