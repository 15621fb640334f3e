"""How a unit's weights are exchanged in the model, and which changes by other code are refused.

Parameters are exchanged in `module._parameters` itself: assigning `.data` would fail for tensor
subclasses and across devices, and `setattr` would register a new parameter each time.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ...errors import StateError
from ...store.places import Place
from ...store.traces import Traces
from .outliving import Users


class Hanging:
    """Tensors to hang in a unit's module dictionaries, and how to tell whether they still do."""

    __slots__ = ("_tables", "traces", "users")

    def __init__(
        self,
        tables: Sequence[tuple[dict[str, Any], dict[str, torch.Tensor]]],
        values: Sequence[torch.Tensor],
    ) -> None:
        self._tables = tuple(tables)
        self.traces = Traces(values)
        self.users = Users(values)

    def hang(self) -> None:
        for table, entries in self._tables:
            table.update(entries)

    def elsewhere(self) -> tuple[dict[str, Any], str] | None:
        """A place (dictionary, name) in which something else hangs, if there is one."""
        for table, entries in self._tables:
            for name, tensor in entries.items():
                if table.get(name) is not tensor:
                    return table, name
        return None


class Binding:
    """The places of a unit's tensors, and what hangs there while the unit is not running.

    `places[i]` are all the places of tensor i (tied tensors hang in several); `idle[i]` is the
    tensor found there between forwards: the host view, or a meta tensor for a unit on disk.
    """

    def __init__(self, places: Sequence[Sequence[Place]], idle: Sequence[torch.Tensor]) -> None:
        self._places = [(place, i) for i, group in enumerate(places) for place in group]
        self._idle = self.hanging(idle)

    def hanging(self, values: Sequence[torch.Tensor]) -> Hanging:
        """Prepares `values` (in tensor order) to be hung, one entry a module."""
        tables: dict[int, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {}
        for place, i in self._places:
            table = place.table
            tables.setdefault(id(table), (table, {}))[1][place.name] = values[i]
        return Hanging(tuple(tables.values()), values)

    def refuse_changed(self) -> None:
        """Before `bind`: raises StateError if foreign code has replaced or changed an idle tensor.

        A slot may hold the old bytes already. What was hung or changed stays, so that the next
        forward is refused as well.
        """
        place = self._idle.elsewhere()
        if place is not None or self._idle.traces.changed():
            raise StateError(
                f"{self._culprit(self._idle, place)} was changed by other code while its block is "
                "swapped: close the swap, then change the weights and swap again"
            )

    def bind(self, values: Hanging) -> None:
        """Hangs `values` in their places."""
        values.hang()

    def lost(self, values: Hanging, unit: str) -> str | None:
        """After the run of `unit`: what is said of a weight that its forward wrote to or replaced.

        `unbind` takes that away; a write to the same memory would be found in its slot.
        """
        place = values.elsewhere()
        if place is None and not values.traces.written():
            return None
        return (
            f"{self._culprit(values, place)} was changed inside the forward of {unit}, whose "
            "weights leave when it ends, so that the change is lost: close the swap, change it, "
            "then swap again"
        )

    def unbind(self) -> None:
        """Hangs the idle tensors back."""
        self._idle.hang()

    def rest_on(self, idle: Sequence[torch.Tensor]) -> None:
        """Replaces what hangs between forwards (used when a unit is opened and closed)."""
        self._idle = self.hanging(idle)
        self.unbind()

    def _culprit(self, hanging: Hanging, elsewhere: tuple[dict[str, Any], str] | None) -> str:
        changed = set(map(id, hanging.traces.culprits()))
        for place, _ in self._places:
            if elsewhere is not None:
                if place.table is elsewhere[0] and place.name == elsewhere[1]:
                    return place.label
            elif id(place.table[place.name]) in changed:
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
