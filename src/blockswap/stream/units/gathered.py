"""How a unit comes that several ranks bring: its part by its own transfer, the rest gathered.

Where the ranks have parted it is brought whole, as if there were no other rank.
"""

from dataclasses import dataclass

import torch

from ..marks import Mark, Recorder
from ..pool.buffers import Slot
from ..pool.gathers import Gathers
from .transfer import StagedCopy, Transfer


@dataclass(frozen=True, slots=True)
class Gathering:
    """What the gather of a unit is about: `what` says which unit it is, the same on every rank.

    `part` is the size of each rank's part, from the start of the slab; `reads`: whether it comes
    from a read, whose end is not the same on all ranks.
    """

    what: int
    name: str
    part: int
    reads: bool


class GatheredTransfer:
    """Brings this rank's part of a unit and leaves the others' to the gathers of the pool."""

    def __init__(
        self,
        gathers: Gathers,
        own: Transfer,
        whole: Transfer,
        gathering: Gathering,
        recorder: Recorder,
    ) -> None:
        self.copied_bytes = own.copied_bytes
        self.reads = gathering.reads
        self._own = own
        self._whole = whole
        self._gathering = gathering
        self._gathers = gathers
        self._recorder = recorder

    @property
    def ahead(self) -> StagedCopy | None:
        """The copy whose read may be asked for before there is a slot."""
        return (self._whole if self._gathers.alone else self._own).ahead

    @property
    def at_once(self) -> bool:
        """Whether the part is copied when it is started, and waits for no read."""
        return self._own.at_once

    def start(self, slot: Slot, mark: Mark) -> None:
        if self._gathers.alone:
            self.alone(slot, mark)
            return
        mark.parts = self._gathers.companions.parts
        self._own.start(slot, mark)
        self._gathers.add(slot, mark, self, self._gathering.what, self._gathering.name)

    def spread(self, slot: Slot) -> tuple[torch.Tensor, torch.Tensor]:
        """What a gather fills, and this rank's part of it."""
        companions, part = self._gathers.companions, self._gathering.part
        whole = slot.memory.narrow(0, 0, companions.parts * part)
        return whole, whole.narrow(0, companions.part * part, part)

    def gathered(self) -> None:
        """The other parts are on their way; on the host they are there."""
        with self._recorder.count_lock:
            self._recorder.counters.gathers += 1
            others = (self._gathers.companions.parts - 1) * self._gathering.part
            self._recorder.counters.gathered_bytes += others

    def alone(self, slot: Slot, mark: Mark) -> None:
        """Brings the whole unit, over whatever the slot holds of it."""
        mark.copied_bytes, mark.parts = self._whole.copied_bytes, 1
        self._whole.start(slot, mark)
