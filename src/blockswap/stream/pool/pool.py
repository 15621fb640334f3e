"""Which slot or staging buffer is taken next, and when memory shared by swaps is given back.

    slots      a few device buffers, each as large as the largest streamed unit
    staging    pinned host buffers between a file (or pageable memory) and a slot
    decode     one device buffer for weights whose stored form is not their compute form
    copies     the copy stream;  readers: the threads that read files

Two experts can share one pool: one unit of all its swaps runs at a time (`entry`, `runner`), a
slot's occupant names its swap too, and `turns` says whose units to bring next. What is shared ends
with the last swap that uses it.
"""

import os
import threading
import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ...ambient import undisturbed
from ...layout.slab import staging_chunks
from ...store.disk import DiskStore
from ...store.file_slab import SECTOR
from ...store.readers import READERS, STUCK_SECONDS, ReaderPool
from ...units import format_bytes
from ..device import Device, Event, aligned, host_buffer
from ..threads import interpreter_exit as exiting
from ..threads.call_stack import in_any_module
from .buffers import Occupant, Slot, Staging
from .gathers import Companions, Gathers
from .run import Run
from .turns import Turns


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """How much memory a pool holds, in bytes, and how many threads read for it."""

    slots: int
    slot_bytes: int
    staging_buffers: int = 0
    staging_bytes: int = 0
    decode_bytes: int = 0
    readers: int = READERS


class Runner(Protocol):
    """One of the swaps that use a pool, as the others see it."""

    @property
    def run(self) -> Run | None:
        """The unit of this swap that is between enter and leave."""
        ...

    def abandon(self) -> None:
        """Ends a run whose forward never came or never returned."""
        ...


class Pool:
    """Slots, staging and decode memory on one device, with a copy stream and reader threads."""

    def __init__(self, device: Device, sizes: PoolSizes) -> None:
        self.device = device
        self.sizes = sizes
        self.copies = device.new_stream()
        self.readers = ReaderPool(sizes.readers)
        self.sentences: list[str] = []
        self.files: list[DiskStore] = []  # closed with the pool when nobody else does
        self.turns: Turns[Any] = Turns()  # of supplies: what they are is not the pool's business
        self.entry = threading.Lock()  # guards `runner`: who may enter a unit
        # Who entered a unit last; weakly, for the pool is kept alive by every one of its swaps.
        self.runner: Callable[[], Runner | None] = _nobody
        self.caller: threading.Thread | None = None  # who began a forward or entered a unit last
        self._process = os.getpid()
        self._swaps = 0
        # Memory made in inference mode could not be written outside it (and the other way round).
        with undisturbed():
            self.slots = [
                Slot(i, device.allocate_slot(sizes.slot_bytes), device) for i in range(sizes.slots)
            ]
            self.staging = [self._staging(sizes) for _ in range(sizes.staging_buffers)]
            self.decode = device.allocate(sizes.decode_bytes) if sizes.decode_bytes else None
        exiting.settle_later(self)
        self.decoded: Event = device.new_event(timing=False)
        self.decoded_on: Any = None
        # Readers and the forward thread both enqueue on the copy stream, one unit at a time.
        self.enqueue_lock = threading.Lock()
        self.gathers: Gathers | None = None  # where other ranks bring parts of units
        self._turn = 0
        self._uses = 0

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that made the pool.

        It has a copy of the memory and nothing else: no reader, no device, and locks that nobody
        will give back. There, nothing is run, waited for, or given back.
        """
        return os.getpid() != self._process

    def find(self, occupant: Occupant) -> Slot | None:
        """The slot that holds, or is about to hold, the unit."""
        for slot in self.slots:
            if slot.occupant == occupant:
                return slot
        return None

    def evictable(self, keep: set[Occupant]) -> Slot | None:
        """The slot that has been free longest, of those not running and not in `keep`."""
        candidates = [s for s in self.slots if not s.in_use and s.occupant not in keep]
        return min(candidates, key=lambda slot: slot.last_used, default=None)

    def fill_with(self, companions: Companions) -> None:
        """From now on other ranks may bring parts of what comes into the slots."""
        self.gathers = Gathers(self.device, companions)

    def touch(self, slot: Slot) -> None:
        """Notes that the slot was used just now."""
        self._uses += 1
        slot.last_used = self._uses

    def release_orphans(self) -> None:
        """Frees slots that a dropped model has left in use, interrupted in the middle of a unit.

        Nobody can tell any more what reads them: the device is waited for, this once.
        """
        orphans = [slot for slot in self.slots if slot.in_use]
        if orphans:
            self.device.synchronize()
        for slot in orphans:
            slot.in_use = False

    def staged(self, occupant: object) -> Staging | None:
        """The staging buffer that holds, or is about to hold, the transfer's unit."""
        for staging in self.staging:
            if staging.occupant is occupant:
                return staging
        return None

    def free_staging(self, keep: Collection[object]) -> Staging | None:
        """A staging buffer that no copy is waiting to leave and whose unit is not in `keep`."""
        free = [s for s in self.staging if not s.is_claimed and s.occupant not in keep]
        return min(free, key=lambda staging: staging.turn, default=None)

    def next_staging(self) -> Staging:
        """The staging buffer to fill at once: the first of the free ones, else of all.

        The read of an earlier unit may still be under way in it, and its copy not enqueued.
        """
        return min(self.staging, key=lambda staging: (staging.is_claimed, staging.turn))

    def fill(self, staging: Staging) -> None:
        """Notes that the staging buffer is given to another unit."""
        self._turn += 1
        staging.turn = self._turn

    def add_staging(self, nbytes: int) -> bool:
        """Makes two staging buffers of `nbytes` unless there are such; True if it made any."""
        if self.staging and self.sizes.staging_bytes >= nbytes:
            return False
        self.sizes = replace(self.sizes, staging_buffers=2, staging_bytes=nbytes)
        with undisturbed():
            self.staging = [self._staging(self.sizes) for _ in range(2)]
        return True

    def add_slots(self, count: int, slot_bytes: int, decode_bytes: int) -> None:
        """Makes the slots, and the decode buffer, of a pool that was opened without any.

        The memory is fresh on the current stream: others wait for it as for a forward's end.
        Raises torch.OutOfMemoryError and changes nothing where there is no room.
        """
        assert not self.slots, "units have views of the slots they were made with"
        device, stream = self.device, self.device.current_stream()
        with undisturbed():
            slots = [Slot(i, device.allocate_slot(slot_bytes), device) for i in range(count)]
            decode = device.allocate(decode_bytes) if decode_bytes else None
        for slot in slots:
            slot.free.record(stream)
            slot.freed_on = stream
        self.decoded.record(stream)
        self.decoded_on = stream
        self.sizes = replace(
            self.sizes, slots=count, slot_bytes=slot_bytes, decode_bytes=decode_bytes
        )
        self.decode = decode
        self.slots[:] = slots

    def rest_at_exit(self) -> None:
        """When the interpreter ends a thread's forward rests here and touches nothing more."""
        if exiting.begun:
            exiting.rest()

    def settle_at_exit(self) -> None:
        """Before the memory goes: nobody computes with it, reads into it or copies to it."""
        if self.forked or not self._swaps:
            return
        exiting.until_rested(self._running)
        self.readers.close()
        self.device.synchronize()

    def _running(self) -> threading.Thread | None:
        """The thread that is in a forward, in a unit or between two."""
        thread = self.caller
        return thread if thread is not None and in_any_module(thread) else None

    def join(self) -> None:
        """One more swap uses the pool, until it leaves or is abandoned."""
        self._swaps += 1

    @property
    def shared(self) -> bool:
        """Whether more than one swap uses the pool."""
        return self._swaps > 1

    def stop_reading(self) -> None:
        """Before a swap's files are closed: its reads end, and with the last swap the readers.

        Reads that a stuck disk holds are given up after a while, like threads in `close`.
        """
        if not self.shared:
            self.readers.close()
            return
        end = time.monotonic() + STUCK_SECONDS
        for staging in self.staging:
            for job in tuple(staging.jobs):
                job.wait(max(0.0, end - time.monotonic()))

    def leave(self) -> None:
        """A swap is closed; the last one takes the memory with it."""
        self._swaps -= 1
        if not self._swaps:
            self.close()

    def abandon(self) -> None:
        """A model went without a close; the last one ends all work before the memory goes too.

        Runs wherever the garbage collector finds the time, so nothing is waited for while other
        swaps go on: what the model left in slots is overwritten, its files are closed at the end.
        """
        if self.forked:
            return
        self._swaps -= 1
        if self._swaps:
            return
        self.readers.close()
        self.device.synchronize()  # the copy engine may still write to slots
        for files in self.files:
            files.close()
        self.close()

    def close(self) -> None:
        """Stops the readers and drops all memory; warns of readers that a disk still holds."""
        stuck = self.readers.close()
        if stuck:
            names = ", ".join(stuck)
            warnings.warn(
                f"{len(stuck)} reader threads still wait for the disk ({names}): they "
                "and the memory they read into stay until it answers",
                stacklevel=2,
            )
        if self.gathers is not None:
            self.gathers.companions.close()
        for slot in self.slots:
            slot.job = None
        for staging in self.staging:
            staging.occupant = staging.read = staging.copy = None
            staging.jobs.clear()
        self.slots.clear()
        self.staging.clear()
        self.decode = None

    def _staging(self, sizes: PoolSizes) -> Staging:
        chunks = [self._chunk(nbytes) for nbytes in staging_chunks(sizes.staging_bytes)]
        return Staging(chunks, self.device)

    def _chunk(self, nbytes: int) -> torch.Tensor:
        memory = self.device.pin(nbytes)
        if memory is not None and memory.data_ptr() % SECTOR and nbytes >= SECTOR:
            # A direct read wants sector-aligned memory, and not every system pins whole pages.
            memory = self.device.pin(nbytes + SECTOR)
        if memory is None:
            self.sentences.append(
                f"pinning {format_bytes(nbytes)} of staging memory failed: copies from it are not "
                "hidden under compute"
            )
            return host_buffer(nbytes)
        return memory if memory.numel() == nbytes else aligned(memory, nbytes)


def _nobody() -> None:
    """The runner of a pool in which nothing has run yet."""
