"""How far copies and reads run ahead, in which order, and when a copy waits for an earlier read.

Two things run ahead of the forward: copies into slots, `prefetch` units ahead and in the order in
which they are needed; and reads into staging buffers, in the order of the units that need one.
Where a pool is shared and another swap's forward comes after this one, that swap's first units
are brought in the place of our own; after the last forward of all, as it was announced, none are.
"""

from collections.abc import Sequence

from ..marks import Recorder
from ..pool.buffers import Occupant, Slot
from ..pool.pool import Pool
from ..units.transfer import StagedCopy, Transfer
from ..units.unit import Unit
from .schedule import Schedule


class Supply:
    """The units of one swap, their expected order, and the pool that they visit."""

    def __init__(
        self, units: Sequence[Unit], pool: Pool, *, prefetch: int, recorder: Recorder
    ) -> None:
        self.units = tuple(units)
        self.prefetch = prefetch
        streamed = frozenset(i for i, unit in enumerate(self.units) if unit.streamed)
        self.schedule = Schedule(range(len(self.units)), streamed)
        self._pool = pool
        self._recorder = recorder
        self.forwards_left: int | None = None  # where a turn's end was announced
        self.number = pool.turns.number()
        self.keys: list[Occupant] = [(self.number, i) for i in range(len(self.units))]

    def replace(self, index: int, unit: Unit) -> None:
        """From here on `unit` stands at `index`; repeating it changes nothing."""
        self.units = (*self.units[:index], unit, *self.units[index + 1 :])
        self.schedule.stream(i for i, unit in enumerate(self.units) if unit.streamed)

    def occupied(self) -> list[Slot]:
        """The slots that hold, or are about to hold, units of this swap."""
        slots = self._pool.slots
        return [slot for slot in slots if slot.occupant and slot.occupant[0] == self.number]

    def begin_forward(self) -> None:
        """The whole model's forward starts."""
        self._pool.turns.began(self)
        self.schedule.begin_forward()
        if self.forwards_left is not None:
            self.forwards_left -= 1

    def slot_of(self, index: int) -> Slot:
        """The slot that holds, or is about to hold, the unit that is to run now."""
        slot = self._pool.find(self.keys[index])
        if slot is not None and (slot.job is None or slot.job.error is None):
            return slot
        # Nobody asked for the unit, or its read failed after it was asked for: read it now.
        self._recorder.counters.on_demand += 1
        slot = slot or self._pool.evictable(set())
        assert slot is not None, "one unit runs at a time, so a slot that is not running exists"
        self.load(index, slot)
        return slot

    def look_ahead(self, distance: int, behind: Slot | None = None) -> None:
        """Copies and reads run ahead."""
        self.fetch_ahead(distance, behind)
        self.read_ahead()

    def fetch_ahead(self, distance: int, behind: Slot | None = None) -> None:
        """Starts copies of the next `distance` streamed units that are in no slot yet.

        Copies come in the order in which they are needed: one from pinned memory is not enqueued
        while the copy of a unit before it, `behind` for the one running, still waits for its read.
        It would hold that copy up until its own slot is free, which is later.
        """
        if not self.prefetch:
            return
        wanted = self._upcoming(distance)
        late = behind is not None and _awaits_read(behind)
        for owner, index in wanted:
            slot = self._pool.find(owner.keys[index])
            if slot is None:
                if late and owner.transfer(index).at_once:
                    return
                slot = self._pool.evictable({other.keys[i] for other, i in wanted})
                if slot is None:
                    return
                owner.load(index, slot)
            late = late or _awaits_read(slot)

    def read_ahead(self) -> None:
        """Starts reads of the next units that come through staging, ahead of the slots.

        Where units in RAM lie between those on disk, the disk works while the link copies them.
        """
        buffers = len(self._pool.staging)
        if not buffers or not self.prefetch:
            return
        wanted: list[StagedCopy] = []
        for owner, index in self._upcoming():
            ahead = owner.transfer(index).ahead
            if ahead is not None and self._pool.find(owner.keys[index]) is None:
                wanted.append(ahead)
                if len(wanted) == buffers:
                    break
        for transfer in wanted:
            if self._pool.staged(transfer) is None and not transfer.read_ahead(wanted):
                return

    def _upcoming(self, distance: int | None = None) -> "list[tuple[Supply, int]]":
        """The next streamed units and whose they are, nearest first, at most `distance`."""
        if self.forwards_left == 0:
            return [(self, index) for index in self.schedule.rest()[:distance]]
        follower: Supply = self._pool.turns.next_after(self)
        if follower is self:
            return [(self, index) for index in self.schedule.upcoming()[:distance]]
        wanted = [(self, index) for index in self.schedule.rest()]
        wanted += [(follower, index) for index in follower.schedule.first()]
        return wanted[:distance]

    def transfer(self, index: int) -> Transfer:
        """How the streamed unit gets into a slot."""
        unit = self.units[index].streamed
        assert unit is not None, "only streamed units are scheduled"
        return unit.transfer

    def load(self, index: int, slot: Slot) -> None:
        """Starts to bring the unit into `slot`, whatever that holds."""
        transfer = self.transfer(index)
        self.empty(slot)
        slot.mark = self._recorder.take()
        slot.mark.copied_bytes, slot.mark.parts = transfer.copied_bytes, 1
        self._pool.touch(slot)
        transfer.start(slot, slot.mark)
        # Last, so that an interrupt before this line leaves a slot that holds nothing.
        slot.occupant = self.keys[index]

    def complete(self, slot: Slot) -> None:
        """The parts that other ranks bring of what the slot holds are called for."""
        gathers = self._pool.gathers
        if gathers is not None:
            gathers.complete(slot)

    def gather_copied(self) -> None:
        """What other ranks bring of copied units is called for, as far as it can be."""
        if self._pool.gathers is not None:
            self._pool.gathers.complete_copied()

    def forget_gathers(self) -> None:
        """The swap ends: other ranks are asked for nothing more."""
        if self._pool.gathers is not None:
            self._pool.gathers.forget(self.occupied())

    def empty_half_loaded(self) -> None:
        """Gives up what an interrupt kept from getting its slot: else its staging stays claimed."""
        for slot in self._pool.slots:
            if slot.occupant is None and slot.job is not None:
                self.empty(slot)

    def empty(self, slot: Slot) -> None:
        """Forgets what a slot holds; a read still under way into it is waited for first.

        A copy that waits for its read in staging is given up, and the read goes on alone.
        """
        slot.occupant = None
        self.complete(slot)
        if slot.job is not None:
            self._pool.readers.cancel_orphan(slot.job)
            slot.job.wait()
            slot.job = None
        if slot.mark is not None:
            self._recorder.discard(slot.mark)
            slot.mark = None

    def retire(self) -> None:
        """The swap is closed: nothing of it is expected or kept in the pool any more."""
        self._pool.turns.forget(self)
        own = [unit.streamed.transfer.ahead for unit in self.units if unit.streamed is not None]
        for staging in self._pool.staging:
            if staging.occupant in own:
                staging.occupant = None


def _awaits_read(slot: Slot) -> bool:
    return slot.job is not None and not slot.job.done
