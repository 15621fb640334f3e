"""The engine: on entering a block its weights are in a slot, on leaving the slot is on its way on.

Three slots a, b, c and six streamed blocks; copies (top) run ahead of compute (bottom):

    copy stream     |0>a |1>b |2>c |3>a      |4>b      |5>c      |0>a      |1>b ...
    compute stream       |0         |1        |2        |3        |4        |5      |0 ...
                         ^ waits ready(a)     ^ free(a) was recorded when 0 ended: 3 may come

Host to device only: nothing is ever copied back. The forward thread never waits for the device;
it may wait for a file read (`slot.job`). Where RAM and disk mix, reads run further ahead than
slots, in the order of the units on disk (`_read_ahead`): staging is what bounds them.
"""

import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import StateError
from ..store.readers import STUCK_SECONDS
from .binding import Binding, Hanging
from .decode import Decode
from .marks import Mark, Recorder
from .pool import Occupant, Pool, Slot
from .schedule import Schedule
from .transfer import PinnedCopy, StagedCopy, Transfer

_MODULE_CALLS = frozenset(
    function.__code__
    for function in (torch.nn.Module._call_impl, torch.nn.Module._wrapped_call_impl)
)


@dataclass(frozen=True, slots=True)
class StreamedUnit:
    """What the engine needs to run a streamed unit.

    `values[s]` is what hangs in the model when the unit is in slot s: views of the slot, or of the
    decode buffer where there is a `decode`.
    """

    binding: Binding
    transfer: Transfer
    values: tuple[Hanging, ...]
    decode: Decode | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit in execution order; `streamed` is None for one that stays where it is."""

    name: str
    tier: str
    module: torch.nn.Module
    streamed: StreamedUnit | None


@dataclass(slots=True)
class _Run:
    """The unit that is between enter and leave."""

    index: int
    thread: threading.Thread
    stream: Any
    mark: Mark | None
    slot: Slot | None = None
    bound: bool = False  # the unit's weights (may) hang in the model


class Streamer:
    """Runs a plan. One unit at a time is between `enter` and `leave`."""

    def __init__(
        self, units: Sequence[Unit], pool: Pool, *, prefetch: int, recorder: Recorder
    ) -> None:
        self.units = tuple(units)
        self.recorder = recorder
        self._pool = pool
        self._device = pool.device
        self._prefetch = prefetch
        streamed = frozenset(i for i, unit in enumerate(self.units) if unit.streamed)
        self._schedule = Schedule(range(len(self.units)), streamed)
        self._keys: list[Occupant] = [(id(self), i) for i in range(len(self.units))]
        self._run: _Run | None = None
        self._entry = threading.Lock()
        self._closed = False
        self._process = os.getpid()

    def begin_forward(self) -> None:
        """The whole model's forward starts. Raises StateError like `enter`."""
        with self._entry:
            self._refuse_another_thread("a forward was started")
            self.recorder.counters.forwards += 1
            self._schedule.begin_forward()

    def enter(self, index: int) -> None:
        """Makes unit `index` ready to run on the current stream.

        Raises StateError under grad, after close, or while another thread runs a unit of this
        swap; ReadError when the unit's bytes could not be read. After an error the unit's idle
        tensors hang in the model and the next attempt starts afresh.
        """
        if torch.is_grad_enabled():
            raise StateError(
                f"{self.units[index].name} was run with gradients enabled, but its weights leave "
                "the device after use: run the model under torch.no_grad() or inference_mode()"
            )
        run = self._claim(index)
        try:
            self._make_ready(run)
        except BaseException:
            self._abandon()
            raise

    def leave(self, index: int) -> None:
        """The unit's forward is enqueued, or failed: its slot is free after that work."""
        run = self._run
        if run is None or run.index != index or run.thread is not threading.current_thread():
            return  # entering failed, and said why
        if run.mark is not None:
            run.mark.ended.record(run.stream)
        self._release(run)
        if run.mark is not None:
            mark, run.mark = run.mark, None
            self.recorder.completed(mark)
        # Whatever comes next is in a slot already: look one further than on entering.
        self._fetch_ahead(self._prefetch + 1)
        self._read_ahead()
        # Last: until here the pool is this thread's alone.
        self._run = None

    def refuse_running(self) -> None:
        """Raises StateError while another thread runs a unit of this swap."""
        with self._entry:
            self._refuse_another_thread("the swap was to be closed")

    def drain(self) -> None:
        """Ends all work of this swap, so that its memory may go; later entries are refused.

        A read that a stuck disk does not finish is given up after a while: its memory stays with
        the job, nobody else gets it.
        """
        self._closed = True
        self._abandon()
        for slot in self._pool.slots:
            if slot.occupant is not None and slot.occupant[0] == id(self):
                if slot.job is not None and not slot.job.wait(STUCK_SECONDS):
                    slot.job = None
                self._empty(slot)
        self._device.synchronize()
        # Whoever still holds this object holds no view of the memory that goes now.
        self.units = tuple(replace(unit, streamed=None) for unit in self.units)

    def forget_slots(self) -> None:
        """Empties every slot, after the copies under way: their sources may then be written to."""
        self._abandon()
        for slot in self._pool.slots:
            self._empty(slot)
        self._device.synchronize()

    def _claim(self, index: int) -> _Run:
        with self._entry:
            if self._closed:
                raise StateError(
                    f"{self.units[index].name} was run after its swap was closed: swap or open the "
                    "model again"
                )
            if os.getpid() != self._process:
                raise StateError(
                    f"{self.units[index].name} was run in a forked process, which has neither the "
                    "threads nor the device of the one that swapped it: open the model there"
                )
            self._refuse_another_thread(f"{self.units[index].name} was run")
            # What is left of an earlier run is what Ctrl-C left: torch calls no hook for it.
            self._abandon()
            self._empty_half_loaded()
            # The compute stream is read here, once, and passed on from here.
            stream = self._device.current_stream()
            run = _Run(index, threading.current_thread(), stream, self.recorder.take())
            self._run = run
            return run

    def _refuse_another_thread(self, what: str) -> None:
        run = self._run
        if run is None or run.thread is threading.current_thread():
            return
        if self._still_inside(run):
            raise StateError(
                f"{what} while another thread runs {self.units[run.index].name} of the same swap: "
                "run one forward at a time, or swap a second copy of the model"
            )

    def repair(self) -> None:
        """Takes weights out of the model that an interrupt (Ctrl-C) has left bound there."""
        with self._entry:
            if self._run is not None and not self._still_inside(self._run):
                self._abandon()

    def _still_inside(self, run: _Run) -> bool:
        """Whether the thread of `run` is really still in the forward of that unit.

        Of another thread only code objects are looked at (reading the locals of a running frame
        is not safe), so being in the forward of any module counts.
        """
        here = run.thread is threading.current_thread()
        module = self.units[run.index].module
        frame = sys._current_frames().get(run.thread.ident or 0)
        while frame is not None:
            if here and frame.f_locals.get("self") is module:
                return True
            if not here and frame.f_code in _MODULE_CALLS:
                return True
            frame = frame.f_back
        return False

    def _make_ready(self, run: _Run) -> None:
        unit = self.units[run.index]
        self._schedule.entered(run.index)
        spare = run.mark
        assert spare is not None, "a run has a mark until it is completed"
        mark = spare
        if unit.streamed is None:
            mark.arrived.record(run.stream)
            self._fetch_ahead(self._prefetch + 1)
            self._read_ahead()
        else:
            slot = self._slot_of(run.index)
            run.slot = slot
            slot.in_use = True
            self._pool.touch(slot)
            self._fetch_ahead(self._prefetch, behind=slot)
            self._read_ahead()
            if self._wait_for_read(run, slot):
                self._fetch_ahead(self._prefetch)
            # The visit that a copy was made for carries that copy's times.
            mark = slot.mark or spare
            mark.arrived.record(run.stream)
            self._wait_ready(run, slot, unit.streamed)
            mark.started.record(run.stream)
            mark.waited = True
            mark.slot = slot.index
            if mark is slot.mark:
                run.mark, slot.mark = mark, None
                self.recorder.discard(spare)
        mark.forward = self.recorder.counters.forwards
        mark.unit = unit.name
        mark.tier = unit.tier

    def _slot_of(self, index: int) -> Slot:
        slot = self._pool.find(self._keys[index])
        if slot is not None and (slot.job is None or slot.job.error is None):
            return slot
        # Nobody asked for the unit, or its read failed after it was asked for: read it now.
        self.recorder.counters.on_demand += 1
        slot = slot or self._pool.evictable(set())
        assert slot is not None, "one unit runs at a time, so a slot that is not running exists"
        self._load(index, slot)
        return slot

    def _fetch_ahead(self, distance: int, behind: Slot | None = None) -> None:
        """Starts copies of the next `distance` streamed units that are in no slot yet.

        Copies come in the order in which they are needed: one from pinned memory is not enqueued
        while the copy of a unit before it, `behind` for the one running, still waits for its read.
        It would hold that copy up until its own slot is free, which is later.
        """
        if not self._prefetch:
            return
        wanted = self._schedule.upcoming()[:distance]
        late = behind is not None and _awaits_read(behind)
        for index in wanted:
            slot = self._pool.find(self._keys[index])
            if slot is None:
                unit = self.units[index].streamed
                assert unit is not None, "only streamed units are scheduled"
                if late and isinstance(unit.transfer, PinnedCopy):
                    return
                slot = self._pool.evictable({self._keys[i] for i in wanted})
                if slot is None:
                    return
                self._load(index, slot)
            late = late or _awaits_read(slot)

    def _read_ahead(self) -> None:
        """Starts reads of the next units that come through staging, ahead of the slots.

        Where units in RAM lie between those on disk, the disk works while the link copies them.
        """
        buffers = len(self._pool.staging)
        if not buffers or not self._prefetch:
            return
        wanted: list[StagedCopy] = []
        for index in self._schedule.upcoming():
            unit = self.units[index].streamed
            assert unit is not None, "only streamed units are scheduled"
            if isinstance(unit.transfer, StagedCopy) and self._pool.find(self._keys[index]) is None:
                wanted.append(unit.transfer)
                if len(wanted) == buffers:
                    break
        for transfer in wanted:
            if self._pool.staged(transfer) is None and not transfer.read_ahead(wanted):
                return

    def _load(self, index: int, slot: Slot) -> None:
        unit = self.units[index].streamed
        assert unit is not None
        self._empty(slot)
        slot.mark = self.recorder.take()
        slot.mark.copied_bytes = unit.transfer.copied_bytes
        self._pool.touch(slot)
        unit.transfer.start(slot, slot.mark)
        # Last, so that an interrupt before this line leaves a slot that holds nothing.
        slot.occupant = self._keys[index]

    def _empty_half_loaded(self) -> None:
        """Gives up what an interrupt kept from getting its slot: else its staging stays claimed."""
        for slot in self._pool.slots:
            if slot.occupant is None and slot.job is not None:
                self._empty(slot)

    def _empty(self, slot: Slot) -> None:
        """Forgets what a slot holds; a read still under way into it is waited for first.

        A copy that waits for its read in staging is given up, and the read goes on alone.
        """
        slot.occupant = None
        if slot.job is not None:
            self._pool.readers.cancel_orphan(slot.job)
            slot.job.wait()
            slot.job = None
        if slot.mark is not None:
            self.recorder.discard(slot.mark)
            slot.mark = None

    def _wait_for_read(self, run: _Run, slot: Slot) -> bool:
        """On the host, until the copy into the slot is enqueued; True if that took waiting."""
        job = slot.job
        if job is None:
            return False
        waited = not job.done
        if waited:
            self.recorder.counters.host_waits += 1
            while not job.wait(1.0):  # in slices: some systems deliver Ctrl-C only between
                pass
        job.raise_error(self.units[run.index].name)
        slot.job = None
        return waited

    def _wait_ready(self, run: _Run, slot: Slot, unit: StreamedUnit) -> None:
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

    def _release(self, run: _Run) -> None:
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

    def _abandon(self) -> None:
        """Ends a run whose forward never came or never returned, leaving nothing bound."""
        run = self._run
        if run is None:
            return
        self._release(run)
        if run.mark is not None:
            mark, run.mark = run.mark, None
            self.recorder.discard(mark)
        self._run = None


def _awaits_read(slot: Slot) -> bool:
    return slot.job is not None and not slot.job.done
