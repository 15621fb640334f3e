"""Where streamed units of a loaded model rest in host memory: the swap's own, or the ranks'."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import torch

from ...layout.values import UnitLayout
from ...lora.request import Lora
from ...ranks.group import Ranks
from ...ranks.shared_weights import SharedWeights
from ...store.ram import RamStore
from ...stream.device import Device
from .parts import Parts


class UnitStore(Protocol):
    """Host memory in which some units rest, each as one slab; numbered as they were given."""

    @property
    def pinned_bytes(self) -> int: ...

    @property
    def pageable_bytes(self) -> int: ...

    def slab_offsets(self, index: int) -> tuple[int, ...]: ...

    def runs(self, index: int) -> list[tuple[torch.Tensor, int]]: ...

    def is_pinned(self, index: int) -> bool: ...

    def adopt(self, index: int, tensors: Sequence[torch.Tensor]) -> None: ...

    def give_back(self, index: int) -> None: ...


class HostMemory(Protocol):
    """Makes the stores of a swap; `sentences` are what its report says of them.

    `pin_budget`: most bytes of host memory to pin for streamed units, now and later.
    """

    @property
    def pin_budget(self) -> int: ...

    @property
    def sentences(self) -> tuple[str, ...]: ...

    def hold(self, undo: ExitStack) -> None:
        """First of all steps of opening, and the last to be taken back."""
        ...

    def with_others(self, parts: Parts) -> Parts:
        """Once there are slots: how other ranks help to bring what rests here."""
        ...

    def store(self, units: Sequence[UnitLayout], pin_budget: int) -> UnitStore: ...


@dataclass(frozen=True, slots=True)
class OwnMemory:
    """Units move into pinned memory of this swap, and back when it is closed."""

    device: Device
    pin_budget: int

    sentences = ()

    def hold(self, undo: ExitStack) -> None:
        """Memory is taken unit by unit."""

    def with_others(self, parts: Parts) -> Parts:
        """Nobody else has it."""
        return parts

    def store(self, units: Sequence[UnitLayout], pin_budget: int) -> UnitStore:
        return RamStore(units, lender=self.device, pin_budget=pin_budget)


@dataclass(frozen=True, slots=True)
class Together:
    """The ranks that share weights. `merging` gives what merges other LoRAs into them, if any can
    be: it raises where they do not fit."""

    ranks: Ranks
    merging: Callable[[tuple[Lora, ...]], Callable[[], None]] | None


class SharedMemory:
    """Units rest where all ranks of the host have them; nothing moves. It is locked as a whole."""

    def __init__(
        self,
        weights: SharedWeights,
        device: Device,
        pin_budget: int,
        with_others: Callable[[Parts], Parts],
        together: Together,
    ) -> None:
        self.pin_budget = pin_budget
        self.with_others = with_others
        self.together = together
        self._weights = weights
        self._device = device
        self._pinned = False

    @property
    def sentences(self) -> tuple[str, ...]:
        return (self._weights.sentence,)

    def hold(self, undo: ExitStack) -> None:
        memory = self._weights.memory
        if memory.numel() <= self.pin_budget and self._device.lock(memory):
            self._pinned = True
            undo.callback(self._device.unlock, memory)

    def store(self, units: Sequence[UnitLayout], pin_budget: int) -> UnitStore:
        return _SharedStore(self._weights, [unit.name for unit in units], self._pinned)


class _SharedStore:
    """Some units of shared weights, as a store."""

    def __init__(self, weights: SharedWeights, units: Sequence[str], pinned: bool) -> None:
        self._slabs = [weights.slab(unit) for unit in units]
        self._pinned = pinned

    @property
    def pinned_bytes(self) -> int:
        return 0  # locked once for all units: no unit adds to it

    @property
    def pageable_bytes(self) -> int:
        return 0 if self._pinned else sum(memory.numel() for memory, _ in self._slabs)

    def slab_offsets(self, index: int) -> tuple[int, ...]:
        return self._slabs[index][1]

    def runs(self, index: int) -> list[tuple[torch.Tensor, int]]:
        return [(self._slabs[index][0], 0)]

    def is_pinned(self, index: int) -> bool:
        return self._pinned

    def adopt(self, index: int, tensors: Sequence[torch.Tensor]) -> None:
        """The unit's tensors lie there already."""

    def give_back(self, index: int) -> None:
        """The unit's tensors stay there: a copy for each rank is what sharing is to avoid."""
