"""What counts as a change of a tensor: its version, address, shape, stride or dtype.

A write bumps a tensor's version; other data, or another look at the same data, has another address,
shape, stride or dtype. `p.data += 1` leaves none of these traces, and a tensor made in inference
mode counts no writes.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch

from .leaves import leaf_tensors, version_of

_VERSION = attrgetter("_version")
_SHAPE = attrgetter("shape")
_DTYPE = attrgetter("dtype")
_META = attrgetter("is_meta")
_POINTER = torch.Tensor.data_ptr
_STRIDE = torch.Tensor.stride


class Traces:
    """What `tensors`, with all their leaves, are now."""

    __slots__ = ("_addresses", "_dtypes", "_empty", "_leaves", "_real", "_shapes", "_strides",
                 "_versioned", "_versions")  # fmt: skip

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._leaves = [(tensor, leaf) for tensor in tensors for _, leaf in leaf_tensors(tensor)]
        self._empty = [leaf for _, leaf in self._leaves if leaf.is_meta]
        self._real = [leaf for _, leaf in self._leaves if not leaf.is_meta]
        self._versioned = [leaf for leaf in self._real if version_of(leaf) >= 0]
        self._versions = list(map(_VERSION, self._versioned))
        self._addresses = list(map(_POINTER, self._real))
        self._shapes = list(map(_SHAPE, self._real))
        self._strides = list(map(_STRIDE, self._real))
        self._dtypes = list(map(_DTYPE, self._real))

    @property
    def uncounted(self) -> int:
        """How many of the leaves count no writes."""
        return len(self._real) - len(self._versioned)

    def written_to(self) -> bool:
        """Whether any has been written to, wherever its data is now."""
        return list(map(_VERSION, self._versioned)) != self._versions

    def written(self) -> bool:
        """Whether any has been written to, or given other data. Lists made in C: the hot path."""
        return self.written_to() or list(map(_POINTER, self._real)) != self._addresses

    def changed(self) -> bool:
        """Whether any is not as it was, its data or how that is looked at."""
        return (
            self.written()
            or list(map(_STRIDE, self._real)) != self._strides
            or list(map(_SHAPE, self._real)) != self._shapes
            or list(map(_DTYPE, self._real)) != self._dtypes
            or not all(map(_META, self._empty))
        )

    def culprits(self) -> list[torch.Tensor]:
        """The tensors that are not as they were."""
        before: dict[int, Any] = dict.fromkeys(map(id, self._empty))
        known = zip(
            self._real, self._addresses, self._shapes, self._strides, self._dtypes, strict=True
        )
        for leaf, *was in known:
            before[id(leaf)] = was
        versions = dict(zip(map(id, self._versioned), self._versions, strict=True))
        return [
            tensor
            for tensor, leaf in self._leaves
            if _look(leaf) != before[id(leaf)]
            or versions.get(id(leaf), version_of(leaf)) != version_of(leaf)
        ]


def _look(leaf: torch.Tensor) -> Any:
    if leaf.is_meta:
        return None
    return [leaf.data_ptr(), leaf.shape, leaf.stride(), leaf.dtype]
