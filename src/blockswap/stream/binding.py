"""Where a unit's tensors hang in the model, and the exchange of what hangs there.

Parameters are exchanged in `module._parameters` itself: assigning `.data` would fail for tensor
subclasses and across devices, and `setattr` would register a new parameter each time.
"""

from collections.abc import Sequence

import torch

from blockswap.errors import StateError
from blockswap.store.places import Place


class Binding:
    """The places of a unit's tensors, and what hangs there while the unit is not running.

    `places[i]` are all the places of tensor i (tied tensors hang in several); `idle[i]` is the
    tensor found there between forwards: the host view, or a meta tensor for a unit on disk.
    """

    def __init__(self, places: Sequence[Sequence[Place]], idle: Sequence[torch.Tensor]) -> None:
        self._places = [(p, i) for i, group in enumerate(places) for p in group]
        self._slots = [(place.table, place.name, i) for place, i in self._places]
        self._idle: list[torch.Tensor] = list(idle)

    def bind(self, values: Sequence[torch.Tensor]) -> None:
        """Hangs `values` (in tensor order) in their places.

        Raises StateError, changing nothing, if foreign code has replaced an idle tensor: its
        value would be lost in silence.
        """
        idle = self._idle
        for table, name, i in self._slots:
            if table.get(name) is not idle[i]:
                self._refuse(name, i)
        for table, name, i in self._slots:
            table[name] = values[i]

    def unbind(self) -> None:
        """Hangs the idle tensors back."""
        idle = self._idle
        for table, name, i in self._slots:
            table[name] = idle[i]

    def rest_on(self, idle: Sequence[torch.Tensor]) -> None:
        """Replaces what hangs between forwards (used when a unit is opened and closed)."""
        self._idle = list(idle)
        self.unbind()

    def _refuse(self, name: str, tensor: int) -> None:
        label = next(p.label for p, i in self._places if i == tensor and p.name == name)
        raise StateError(
            f"{label} was replaced by other code while its block is swapped: close the swap, "
            "change the weights, then swap again"
        )


def as_value(tensor: torch.Tensor, *, is_parameter: bool) -> torch.Tensor:
    """`tensor` in the form in which it may hang in a module.

    Parameters never require grad: autocast keeps a cache of cast weights for leaves that do, and
    a reused slot would then compute with the previous block's weights.
    """
    if not is_parameter:
        return tensor
    return torch.nn.Parameter(tensor, requires_grad=False)
