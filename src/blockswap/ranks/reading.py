"""Who reads a checkpoint at opening: one rank for all of its host, into memory that all see.

    scratch   what is read, until each rank has put it where it belongs
    weights   what stays where blocks compute: on the CPU once for all ranks, else each rank's own
    pin       what rests in host memory, once for all ranks

Every rank of the host must ask for the same, in the same order.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from ..store.arena import Lender, pageable
from ..stream.device import Device, host_buffer
from .group import Ranks
from .host_contents import spans_hosts
from .segment import agreed_segment


class Reading(Lender, Protocol):
    """Memory that weights are read into, and whether this process fills it."""

    fills: bool  # what all ranks share is filled by this one
    places: bool  # what `weights` gives, too
    across: bool  # ranks of other hosts read the same from files of their own

    def scratch(self, nbytes: int) -> torch.Tensor:
        """Memory for a read, `nbytes` of uint8."""
        ...

    def read(self, what: str, fill: Callable[[], None]) -> None:
        """Fills scratch memory by `fill`, in the process that does it; it is full afterwards."""
        ...

    def weights(self, nbytes: int) -> torch.Tensor:
        """Memory for weights that stay, on the device."""
        ...

    def pageable(self, nbytes: int) -> torch.Tensor:
        """Memory for weights that could not be pinned. Raises PlanError."""
        ...

    def let_go(self) -> None:
        """Nothing is copied from there any more: it is pinned no longer."""
        ...


class ReadAlone:
    """One process has the model to itself."""

    fills = places = True
    across = False

    def __init__(self, device: Device) -> None:
        self.weights = device.allocate
        self.pin = device.pin
        self.release_cached_host_memory = device.release_cached_host_memory
        self.scratch = host_buffer
        self.pageable = pageable

    def read(self, what: str, fill: Callable[[], None]) -> None:
        fill()

    def let_go(self) -> None:
        """What was pinned goes with its tensors."""


class ReadByOne:
    """The first rank of the host reads for all of them."""

    def __init__(self, ranks: Ranks, device: Device) -> None:
        self._ranks = ranks.of_this_host()
        self.across = spans_hosts(ranks)
        self._device = device
        self._reader = self._ranks.ranks[0]
        self.fills = self._ranks.rank == self._reader
        self.places = self.fills or not device.on_host
        self.release_cached_host_memory = device.release_cached_host_memory
        self._locked: list[torch.Tensor] = []
        self._refused: torch.Tensor | None = None  # shared, and not to be pinned

    def scratch(self, nbytes: int) -> torch.Tensor:
        segment = agreed_segment(self._ranks, self._reader, max(nbytes, 1))
        return segment.memory.narrow(0, 0, nbytes)

    def read(self, what: str, fill: Callable[[], None]) -> None:
        with self._ranks.together(f"read {what}"):
            if self.fills:
                fill()

    def weights(self, nbytes: int) -> torch.Tensor:
        return self.scratch(nbytes) if self._device.on_host else self._device.allocate(nbytes)

    def pin(self, nbytes: int) -> torch.Tensor | None:
        memory = self.scratch(nbytes)
        if self._device.lock(memory):
            self._locked.append(memory)
            return memory
        self._refused = memory
        return None

    def pageable(self, nbytes: int) -> torch.Tensor:
        memory, self._refused = self._refused, None
        assert memory is not None, "it was to be pinned first"
        assert memory.numel() == nbytes, "by the same plan"
        return memory

    def let_go(self) -> None:
        while self._locked:
            self._device.unlock(self._locked.pop())
