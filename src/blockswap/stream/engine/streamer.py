"""What happens on entering and leaving a block: waits, binding, freeing its slot, interrupts.

Three slots a, b, c and six streamed blocks; copies (top) run ahead of compute (bottom):

    copy stream     |0>a |1>b |2>c |3>a      |4>b      |5>c      |0>a      |1>b ...
    compute stream       |0         |1        |2        |3        |4        |5      |0 ...
                         ^ waits ready(a)     ^ free(a) was recorded when 0 ended: 3 may come

Host to device only: nothing is ever copied back. The forward thread never waits for the device;
it may wait for a file read (`slot.job`). Where RAM and disk mix, reads run further ahead than
slots, in the order of the units on disk (`Supply.read_ahead`): staging is what bounds them.
"""

import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...errors import StateError
from ...store.readers import STUCK_SECONDS
from ..marks import Recorder
from ..pool.buffers import Slot
from ..pool.pool import Pool
from ..pool.run import Run
from ..units.resident import Resident
from ..units.unit import Change, StreamedUnit, Unit
from .admission import (
    refuse_forked,
    refuse_running,
    refuse_saving,
    refuse_under_way,
    refuse_ways_of_running,
)
from .supply import Supply


class Streamer:
    """Runs a plan. One unit at a time is between `enter` and `leave`."""

    def __init__(
        self, units: Sequence[Unit], pool: Pool, *, prefetch: int, recorder: Recorder
    ) -> None:
        self.recorder = recorder
        self._supply = Supply(units, pool, prefetch=prefetch, recorder=recorder)
        self._pool = pool
        self._device = pool.device
        self.run: Run | None = None
        self._myself = weakref.ref(self)
        self._arriving: dict[int, Resident] = {}  # slabs of units that stay from their next visit
        self._change: Change | None = None  # begun, and to be completed by whoever comes next
        self._settled = self._device.new_event(timing=False)
        self._closed = False
        self._spoiled: str | None = None  # why no forward is right any more
        self._forward: threading.Thread | None = None  # who is in the whole model's forward

    @property
    def units(self) -> tuple[Unit, ...]:
        """In execution order, as they are now."""
        return self._supply.units

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that swapped the model."""
        return self._pool.forked

    def begin_forward(self) -> None:
        """The whole model's forward starts. Raises StateError like `enter`."""
        self._pool.rest_at_exit()
        refuse_forked(self._pool, "a forward was started")
        with self._pool.entry:
            refuse_running(self._pool, self, "a forward was started")
            self._pool.caller = threading.current_thread()
            self.recorder.counters.forwards += 1
            self._supply.begin_forward()
            self._forward = threading.current_thread()

    def end_forward(self) -> None:
        """The whole model's forward has returned or failed."""
        self._forward = None

    def enter(self, index: int) -> None:
        """Makes unit `index` ready to run on the current stream.

        Raises StateError under grad, after close, or while another thread runs a unit of this
        swap; ReadError when the unit's bytes could not be read. After an error the unit's idle
        tensors hang in the model and the next attempt starts afresh.
        """
        refuse_ways_of_running(self.units[index].name)
        self._pool.rest_at_exit()
        refuse_forked(self._pool, f"{self.units[index].name} was run")
        run = self._claim(index)
        try:
            self._make_ready(run)
        except BaseException:
            self.abandon()
            raise

    def leave(self, index: int, output: Any = None) -> Any:
        """The forward is enqueued, or failed; its `output`, without what leaves with its weights.

        The slot is free after that work.
        """
        run = self.run
        if run is None or run.index != index or not run.is_here:
            return output  # entering failed, and said why
        if run.refused or self._pool.forked:
            run.refused = max(run.refused - 1, 0)
            return output  # a child forked in a unit: the device and the readers stayed behind
        self._pool.rest_at_exit()
        unit = self.units[index].streamed
        if unit is not None and run.slot is not None and run.bound:
            users = unit.values[run.slot.index].users
            output, self._spoiled = users.after(run, output, self._pool.sentences, self._spoiled)
        if run.mark is not None:
            run.mark.ended.record(run.stream)
        slot, lost = run.slot, self._lost(run)
        self._release(run)
        if slot is not None and lost is not None:
            self._supply.empty(slot)  # its bytes may have been written to
        if (mark := run.take_mark()) is not None:
            self.recorder.completed(mark)
        if self._arriving:
            self._arrive(index)
        # Whatever comes next is in a slot already: look one further than on entering.
        self._supply.look_ahead(self._supply.prefetch + 1)
        try:
            self._supply.gather_copied()
        finally:
            # Last: until here the pool is this thread's alone.
            self.run = None
        if lost is not None:
            # Not once only: a second forward would compute as if nothing had been asked.
            self._spoiled = lost
            raise StateError(lost)
        return output

    def tiers(self) -> dict[str, str]:
        """Where each unit rests; one that stays from its next visit on counts as resident."""
        return {
            unit.name: "resident" if index in self._arriving else unit.tier
            for index, unit in enumerate(self.units)
        }

    def promote(self, index: int, resident: Resident) -> None:
        """The streamed unit stays from its next visit on, in the slab of `resident`.

        Call it between forwards. No transfer is made for it: the visit's own serves.
        """
        with self._pool.entry:
            refuse_running(self._pool, self, "residents were to be added")
            assert self.units[index].streamed is not None, "only a streamed unit is promoted"
            self._arriving[index] = resident

    def demote(self, index: int, tier: str, streamed: StreamedUnit) -> None:
        """The resident unit is streamed from now on, as `streamed` says; its slab is let go.

        Call it between forwards. Nothing is waited for: work under way keeps what it reads.
        """
        with self._pool.entry:
            refuse_running(self._pool, self, "blocks that stay were to leave the device")
            arriving = self._arriving.get(index)
            if arriving is not None:
                arriving.take_down()
                del self._arriving[index]
                return
            unit = self.units[index]
            assert unit.resident is not None, "only a unit with a slab of its own is demoted"
            resident = unit.resident

            def hang() -> None:
                resident.take_down()
                streamed.binding.unbind()

            unit = replace(unit, tier=tier, streamed=streamed, resident=None)
            self._change = Change(index, unit, hang)
            self._complete_change()

    def expect(self, forwards: int, successor: "Streamer") -> None:
        """After `forwards` forwards in a row come those of `successor`, a swap of the same pool."""
        successor.expect_after(self._supply, forwards)

    def expect_after(self, supply: Supply, forwards: int) -> None:
        """This swap's forwards come after `forwards` in a row of that of `supply`."""
        self._pool.turns.expect(supply, forwards, self._supply)

    def end_after(self, forwards: int) -> None:
        """After `forwards` more nothing is brought."""
        self._supply.forwards_left = forwards

    def shares_pool_with(self, other: "Streamer") -> bool:
        return other.uses(self._pool)

    def uses(self, pool: Pool) -> bool:
        return self._pool is pool

    def deepen(self, prefetch: int) -> None:
        self._supply.prefetch = prefetch  # looks so far ahead from now on: slots have been added

    def _arrive(self, index: int) -> None:
        """A unit whose slab is filled stays from here on."""
        resident = self._arriving.get(index)
        if resident is not None and resident.filled:
            unit = replace(self.units[index], tier="resident", streamed=None, resident=resident)
            self._change = Change(index, unit, resident.hang)
            self._complete_change()

    def _complete_change(self) -> None:
        """Every step may be repeated: an interrupt leaves the change to the next entry."""
        change = self._change
        if change is None:
            return
        change.hang()
        self._supply.replace(change.index, change.unit)
        self._arriving.pop(change.index, None)
        self._change = None

    def refuse_running(self) -> None:
        """Raises StateError while the model runs, around this call or in another thread."""
        refuse_forked(self._pool, "the swap was to be changed")
        with self._pool.entry:
            refuse_running(self._pool, self, "the swap was to be closed")
            refuse_under_way(self._forward)

    def refuse_saving(self, index: int) -> None:
        """Raises StateError where the weights of unit `index` are a slot's, for its forward."""
        refuse_saving(self.run, index)

    def spoil(self, sentence: str) -> None:
        self._spoiled = sentence  # no forward is right any more, and each says this

    def drain(self) -> None:
        """Ends all work of this swap, so that its memory may go; later entries are refused.

        A read that a stuck disk does not finish is given up after a while: its memory stays with
        the job, nobody else gets it.
        """
        self._closed = True
        self.abandon()
        self._complete_change()
        self._supply.forget_gathers()
        for slot in self._supply.occupied():
            if slot.job is not None and not slot.job.wait(STUCK_SECONDS):
                slot.job = None
            self._supply.empty(slot)
        self._device.synchronize()
        self._supply.retire()
        # Whoever still holds this object holds no view of the memory that goes now.
        self._supply.units = tuple(replace(u, streamed=None, resident=None) for u in self.units)
        self._arriving.clear()

    def forget_slots(self) -> None:
        """Empties every slot, after the copies under way: their sources may then be written to."""
        self._end_left_behind()
        for slot in self._pool.slots:
            self._supply.empty(slot)
        self._device.synchronize()

    def _claim(self, index: int) -> Run:
        with self._pool.entry:
            if self._closed:
                raise StateError(
                    f"{self.units[index].name} was run after its swap was closed: swap or open the "
                    "model again"
                )
            if self._spoiled is not None:
                raise StateError(self._spoiled)
            refuse_running(self._pool, self, f"{self.units[index].name} was run", index)
            self._end_left_behind()
            self._supply.empty_half_loaded()
            self._complete_change()
            # The compute stream is read here, once, and passed on from here.
            stream = self._device.current_stream()
            unit, thread = self.units[index], threading.current_thread()
            run = Run(index, unit.name, unit.module, thread, stream, self.recorder.take())
            self._pool.runner, self._pool.caller = self._myself, run.thread
            self.run = run
            return run

    def _end_left_behind(self) -> None:
        """Ends what Ctrl-C left of an earlier run, of any swap of the pool: no hook is called then.

        Call it when no unit of the pool is running, which makes the pool this thread's alone.
        """
        if (runner := self._pool.runner()) is None:
            self._pool.release_orphans()
        else:
            runner.abandon()

    def repair(self) -> None:
        """Takes weights out of the model that an interrupt (Ctrl-C) has left bound there."""
        if self._pool.forked:
            return
        with self._pool.entry:
            if self.run is None or not self.run.is_under_way():
                self.abandon()
                self._complete_change()

    def _make_ready(self, run: Run) -> None:
        if self._arriving:
            self._arrive(run.index)  # an interrupt came between its filling and its stay
        supply, unit = self._supply, self.units[run.index]
        supply.schedule.entered(run.index)
        assert run.mark is not None, "a run has a mark until it is completed"
        mark = spare = run.mark
        if unit.streamed is None:
            mark.arrived.record(run.stream)
            if unit.resident is not None:
                unit.resident.read_on(run.stream, self._settled)
            supply.look_ahead(supply.prefetch + 1)
        else:
            slot = supply.slot_of(run.index)
            run.slot = slot
            slot.in_use = True
            self._pool.touch(slot)
            supply.look_ahead(supply.prefetch, behind=slot)
            late = slot.job is not None and not slot.job.done
            if slot.gather is not None:
                supply.complete(slot)  # waits for the own part's read, and tells others if it fails
            if self._wait_for_read(run, slot) or late:
                supply.fetch_ahead(supply.prefetch)
            # The visit that a copy was made for carries that copy's times.
            mark = slot.mark or spare
            mark.arrived.record(run.stream)
            self._wait_ready(run, slot, unit.streamed)
            mark.started.record(run.stream)
            if self._arriving and run.index in self._arriving:
                self._arriving[run.index].fill(run.stream, self._settled)
            mark.waited = True
            mark.slot = slot.index
            if mark is slot.mark:
                run.mark, slot.mark = mark, None
                self.recorder.discard(spare)
        mark.forward = self.recorder.counters.forwards
        mark.unit = unit.name
        mark.tier = unit.tier

    def _wait_for_read(self, run: Run, slot: Slot) -> bool:
        """On the host, until the copy into the slot is enqueued; True if that took waiting."""
        job = slot.job
        if job is None:
            return False
        if waited := not job.done:
            self.recorder.counters.host_waits += 1
            while not job.wait(1.0):  # in slices: some systems deliver Ctrl-C only between
                pass
        job.raise_error(self.units[run.index].name)
        slot.job = None
        return waited

    def _wait_ready(self, run: Run, slot: Slot, unit: StreamedUnit) -> None:
        unit.binding.refuse_changed()
        # The copy engine writes the slot; the compute stream reads it after that copy.
        self._device.wait(run.stream, slot.ready)
        if slot.freed_on is not None and slot.freed_on != run.stream:
            # The slot's last reader ran on another stream. `free` is about to be recorded on this
            # one, and must go on covering that reader.
            self._device.wait(run.stream, slot.free)
        run.bound = True  # before the first exchange: an interrupt in the middle is undone
        if unit.decode is not None:
            unit.decode.run(self._pool, slot.index, run.stream)
        unit.binding.bind(unit.values[slot.index])
        run.users = unit.values[slot.index].users.count()

    def _lost(self, run: Run) -> str | None:
        """What the run's forward did to its weights that leaving takes away, as a sentence."""
        unit = self.units[run.index].streamed
        if run.slot is None or unit is None or not run.bound:
            return None
        return unit.binding.lost(unit.values[run.slot.index], run.name)

    def _release(self, run: Run) -> None:
        """Takes the unit's weights out of the model and its slot out of use.

        May run twice for one visit, when an interrupt came in the middle.
        """
        unit = self.units[run.index].streamed
        if run.slot is not None and unit is not None:
            if run.bound:
                # The forward enqueued so far reads the slot; whoever overwrites it waits for this.
                run.slot.free.record(run.stream)
                run.slot.freed_on = run.stream
                if unit.decode is not None:
                    self._pool.decoded.record(run.stream)
                    self._pool.decoded_on = run.stream
                unit.binding.unbind()
                run.bound = False
            self._pool.touch(run.slot)
            run.slot.in_use = False
            run.slot = None

    def abandon(self) -> None:
        """Ends a run whose forward never came or never returned, leaving nothing bound."""
        run = self.run
        if run is None:
            return
        self._release(run)
        if (mark := run.take_mark()) is not None:
            self.recorder.discard(mark)
        self.run = None
