"""Where a unit's tensors hang in the model, and the exchange of what hangs there.

Parameters are exchanged in `module._parameters` itself: assigning `.data` would fail for tensor
subclasses and across devices, and `setattr` would register a new parameter each time.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch

from ...errors import StateError
from ...store.leaves import leaf_tensors, version_of
from ...store.places import Place

# What hangs, or shall hang, in each of a unit's module dictionaries: (dictionary, its entries).
Hanging = tuple[tuple[dict[str, Any], dict[str, torch.Tensor]], ...]

_VERSION = attrgetter("_version")


class Binding:
    """The places of a unit's tensors, and what hangs there while the unit is not running.

    `places[i]` are all the places of tensor i (tied tensors hang in several); `idle[i]` is the
    tensor found there between forwards: the host view, or a meta tensor for a unit on disk.
    """

    def __init__(self, places: Sequence[Sequence[Place]], idle: Sequence[torch.Tensor]) -> None:
        self._places = [(place, i) for i, group in enumerate(places) for place in group]
        self._watch(idle)

    def hanging(self, values: Sequence[torch.Tensor]) -> Hanging:
        """Prepares `values` (in tensor order) for `bind`, one entry a module."""
        tables: dict[int, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {}
        for place, i in self._places:
            table = place.table
            tables.setdefault(id(table), (table, {}))[1][place.name] = values[i]
        return tuple(tables.values())

    def bind(self, values: Hanging) -> None:
        """Hangs `values` in their places.

        Raises StateError, changing nothing, if foreign code has replaced an idle tensor or
        written to it: a slot may hold the old bytes already. (A write through `.data` to the same
        memory leaves no trace and cannot be seen.)
        """
        for table, idle in self._idle:
            for name, tensor in idle.items():
                if table.get(name) is not tensor:
                    self._refuse(table, name)
        # Lists made in C: this is the hottest loop of the engine.
        if list(map(_VERSION, self._versioned)) != self._versions:
            self._refuse()
        if list(map(torch.Tensor.data_ptr, self._leaves)) != self._addresses:
            self._refuse()
        for table, entries in values:
            table.update(entries)

    def unbind(self) -> None:
        """Hangs the idle tensors back."""
        for table, entries in self._idle:
            table.update(entries)

    def rest_on(self, idle: Sequence[torch.Tensor]) -> None:
        """Replaces what hangs between forwards (used when a unit is opened and closed)."""
        self._watch(idle)
        self.unbind()

    def _watch(self, idle: Sequence[torch.Tensor]) -> None:
        self._idle = self.hanging(idle)
        leaves = [leaf for tensor in idle for _, leaf in leaf_tensors(tensor)]
        self._leaves = [leaf for leaf in leaves if leaf.device.type != "meta"]
        self._addresses = [leaf.data_ptr() for leaf in self._leaves]
        self._versioned = [leaf for leaf in self._leaves if version_of(leaf) >= 0]
        self._versions = [version_of(leaf) for leaf in self._versioned]

    def _refuse(self, table: dict[str, Any] | None = None, name: str = "") -> None:
        raise StateError(
            f"{self._culprit(table, name)} was changed by other code while its block is swapped: "
            "close the swap, then change the weights and swap again"
        )

    def _culprit(self, table: dict[str, Any] | None, name: str) -> str:
        changed = {
            id(leaf)
            for leaf, version in zip(self._versioned, self._versions, strict=True)
            if version_of(leaf) != version
        } | {
            id(leaf)
            for leaf, address in zip(self._leaves, self._addresses, strict=True)
            if leaf.data_ptr() != address
        }
        for place, _ in self._places:
            if table is not None:
                if place.table is table and place.name == name:
                    return place.label
            elif any(id(leaf) in changed for _, leaf in leaf_tensors(place.table[place.name])):
                return place.label
        return "a weight"


def as_value(tensor: torch.Tensor, *, is_parameter: bool) -> torch.Tensor:
    """`tensor` in the form in which it may hang in a module.

    Parameters never require grad: autocast keeps a cache of cast weights for leaves that do, and
    a reused slot would then compute with the previous block's weights.
    """
    if not is_parameter:
        return tensor
    if type(tensor) is not torch.Tensor:
        # `Parameter` detaches a subclass, and some (comfy's QuantizedTensor) copy their scales
        # then: those would be views of the slot no more. torch marks such parameters like this.
        tensor._is_param = True
        return tensor
    return torch.nn.Parameter(tensor, requires_grad=False)
