"""In which order slots that several ranks fill are completed, and what each gather waits for.

    copy stream     |own part of 0>a |own part of 1>b |...
    gathers                          |0>a             |1>b ...    the others' parts, all to all
    compute                                |0               |1

A gather is a collective: every rank must call the same ones in the same order. So they stand in a
queue in the order in which units are asked for, which follows from the forwards alone, and each is
called by the forward thread, when its unit is entered at the latest; never by whoever ends a read.
Before it is called all ranks have said which unit it is for (`Companions.together`). Where one
says another unit, or does not come within the stated wait, this rank brings the unit alone.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ...errors import StateError
from ..device import Device
from ..marks import Mark
from .buffers import Slot


class Companions(Protocol):
    """The ranks that fill slots together, as one of them sees the others.

    `part` of `parts` is this rank's. `entry` counts the gathers; `what` says which unit one is for.
    """

    part: int
    parts: int

    def post(self, entry: int, what: int) -> None:
        """Says what this rank's gather number `entry` is for."""
        ...

    def together(self, entry: int, name: str) -> bool:
        """Whether all ranks have said the same of `entry`; waits for them, at most a stated time.

        False: from `entry` on every rank brings each unit alone. All ranks get the same answer.
        """
        ...

    def withdraw(self, entry: int, name: str) -> None:
        """This rank will not take part from `entry` on."""
        ...

    def close(self) -> None:
        """This rank brings nothing any more."""
        ...

    def gather(self, whole: torch.Tensor, part: torch.Tensor, name: str) -> None:
        """Enqueues the collective on the current stream. Raises StateError where it fails."""
        ...


class SharedBringing(Protocol):
    """How a unit is brought by several ranks: by each its part, or by this one alone."""

    reads: bool  # whether the part comes from a read

    def spread(self, slot: Slot) -> tuple[torch.Tensor, torch.Tensor]:
        """What a gather fills, and this rank's part of it."""
        ...

    def gathered(self) -> None:
        """A gather was called: it is counted."""
        ...

    def alone(self, slot: Slot, mark: Mark) -> None:
        """Brings the whole unit, over whatever the slot holds of it."""
        ...


@dataclass(slots=True)
class Gather:
    """One entry of the queue: a slot that holds this rank's part of a unit, or soon will."""

    entry: int
    slot: Slot
    mark: Mark
    bringing: SharedBringing
    what: int
    name: str
    posted: bool = False
    begun: bool = False
    done: bool = False


class Gathers:
    """The queue of gathers of one pool, and their stream."""

    def __init__(self, device: Device, companions: Companions) -> None:
        self.companions = companions
        self.alone = False  # every unit is brought by this rank itself from now on
        self._device = device
        self._stream: Any = device.new_stream()
        self._queue: deque[Gather] = deque()
        self._entries = self._swaps = 0
        self._broken: str | None = None

    def number(self) -> int:
        """A number for the units of one more swap, the same on every rank."""
        self._swaps += 1
        return self._swaps << 20  # more units than any model has

    def add(self, slot: Slot, mark: Mark, bringing: SharedBringing, what: int, name: str) -> None:
        """The slot's own part is under way: its gather comes after all that were added before."""
        gather = Gather(self._entries, slot, mark, bringing, what, name)
        self._queue.append(gather)
        self._entries += 1
        slot.gather = gather
        self._post_copied()

    def complete(self, slot: Slot) -> None:
        """Calls the gathers up to the slot's, or brings those units alone.

        Raises StateError where a gather failed, ReadError or what ended this rank's read.
        """
        while slot.gather is not None and self._queue:
            self._settle(self._queue[0])
            self._queue.popleft()

    def complete_copied(self) -> None:
        """Calls those at the front whose parts come from memory: no read is waited for."""
        while self._queue and not self._queue[0].bringing.reads:
            self._settle(self._queue[0])
            self._queue.popleft()

    def forget(self, slots: Sequence[Slot]) -> None:
        """A swap is closed: gathers into its slots are not called, and the others are told."""
        for gather in [g for g in self._queue if g.slot in slots]:
            if gather.posted and not gather.done:
                self._leave(gather)
            self._queue.remove(gather)
            gather.slot.gather = None

    def _leave(self, gather: Gather) -> None:
        if not self.alone:
            self.companions.withdraw(gather.entry, gather.name)
        self.alone = True

    def _post_copied(self) -> None:
        """Says what is known of copied units, in the order of the queue: none before a read one."""
        for gather in self._queue:
            if gather.bringing.reads and not gather.posted:
                return
            self._post(gather)

    def _post(self, gather: Gather) -> None:
        if not self.alone and not gather.posted:
            self.companions.post(gather.entry, gather.what)
            gather.posted = True

    def _settle(self, gather: Gather) -> None:
        if gather.done:
            return  # an interrupt came before it left the queue
        if self._broken is not None or gather.begun:
            # Called or not, the other ranks are not asked twice: they would pair it with the next.
            raise StateError(
                self._broken
                or f"the gather of {gather.name} was interrupted, and what the other ranks got of "
                "it is not known: close the swap on all ranks and swap the model again"
            )
        slot = gather.slot
        if slot.job is not None and not self._read(gather):
            self._leave(gather)
        if not self.alone:
            self._post(gather)
            self._post_copied()
            self.alone = not self.companions.together(gather.entry, gather.name)
        if self.alone:
            if slot.job is None or slot.job.error is None:
                gather.bringing.alone(slot, gather.mark)
        else:
            self._call(gather)
        slot.gather = None
        gather.done = True

    def _read(self, gather: Gather) -> bool:
        """Waits for this rank's read; False if it failed, which whoever runs the unit is told."""
        job = gather.slot.job
        assert job is not None
        while not job.wait(1.0):  # in slices: some systems deliver Ctrl-C only between
            pass
        return job.error is None

    def _call(self, gather: Gather) -> None:
        slot, device = gather.slot, self._device
        whole, part = gather.bringing.spread(slot)
        gather.begun = True
        with device.on(self._stream):
            # The copy stream wrote this rank's part; the gather sends it after that copy.
            device.wait(self._stream, slot.ready)
            try:
                self.companions.gather(whole, part, gather.name)
            except StateError as error:
                self._broken = str(error)
                raise
            gather.mark.copy_ended.record(self._stream)
            slot.ready.record(self._stream)
            # Until the next copy has waited for it: a slot may be given away before it is read.
            slot.gathered = True
        gather.bringing.gathered()
