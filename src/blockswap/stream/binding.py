"""Where a unit's tensors hang in the model, and the exchange of what hangs there.

Parameters are exchanged in `module._parameters` itself: assigning `.data` would fail for tensor
subclasses and across devices, and `setattr` would register a new parameter each time.
"""

from collections.abc import Sequence

import torch

from blockswap.errors import StateError
from blockswap.store.leaves import leaf_tensors, version_of
from blockswap.store.places import Place


class Binding:
    """The places of a unit's tensors, and what hangs there while the unit is not running.

    `places[i]` are all the places of tensor i (tied tensors hang in several); `idle[i]` is the
    tensor found there between forwards: the host view, or a meta tensor for a unit on disk.
    """

    def __init__(self, places: Sequence[Sequence[Place]], idle: Sequence[torch.Tensor]) -> None:
        self._places = [(p, i) for i, group in enumerate(places) for p in group]
        self._tables = [(place.table, place.name, i) for place, i in self._places]
        self._idle: list[torch.Tensor] = []
        self._watched: list[tuple[torch.Tensor, int, int, int]] = []
        self._watch(idle)

    def bind(self, values: Sequence[torch.Tensor]) -> None:
        """Hangs `values` (in tensor order) in their places.

        Raises StateError, changing nothing, if foreign code has replaced an idle tensor or
        written to it: a slot may hold the old bytes already. (A write through `.data` to the same
        memory leaves no trace and cannot be seen.)
        """
        idle = self._idle
        for table, name, i in self._tables:
            if table.get(name) is not idle[i]:
                self._refuse(i)
        for leaf, address, version, i in self._watched:
            if leaf.data_ptr() != address or version_of(leaf) != version:
                self._refuse(i)
        for table, name, i in self._tables:
            table[name] = values[i]

    def unbind(self) -> None:
        """Hangs the idle tensors back."""
        idle = self._idle
        for table, name, i in self._tables:
            table[name] = idle[i]

    def rest_on(self, idle: Sequence[torch.Tensor]) -> None:
        """Replaces what hangs between forwards (used when a unit is opened and closed)."""
        self._watch(idle)
        self.unbind()

    def _watch(self, idle: Sequence[torch.Tensor]) -> None:
        self._idle = list(idle)
        self._watched = [
            (leaf, leaf.data_ptr(), version_of(leaf), i)
            for i, tensor in enumerate(self._idle)
            for _, leaf in leaf_tensors(tensor)
            if leaf.device.type != "meta"
        ]

    def _refuse(self, tensor: int) -> None:
        label = next(place.label for place, i in self._places if i == tensor)
        raise StateError(
            f"{label} was changed by other code while its block is swapped: close the swap, then "
            "change the weights and swap again"
        )


def as_value(tensor: torch.Tensor, *, is_parameter: bool) -> torch.Tensor:
    """`tensor` in the form in which it may hang in a module.

    Parameters never require grad: autocast keeps a cache of cast weights for leaves that do, and
    a reused slot would then compute with the previous block's weights.
    """
    if not is_parameter:
        return tensor
    return torch.nn.Parameter(tensor, requires_grad=False)
