"""The pool: device memory and helpers that a swap borrows, and that outlive it.

    slots      a few device buffers, each as large as the largest streamed unit
    staging    pinned host buffers between a file (or pageable memory) and a slot
    decode     one device buffer for weights whose stored form is not their compute form
    copies     the copy stream;  readers: the threads that read files

Two experts or two clones of a model can share one pool: a slot's occupant names its swap too.
"""

import threading
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch

from ..layout.slab import staging_chunks
from ..store.disk import DiskStore
from ..store.file_slab import SECTOR
from ..store.landing import Landing
from ..store.readers import READERS, Job, ReaderPool
from ..units import format_bytes
from .device import Device, Event, aligned, host_buffer
from .marks import Mark

Occupant = tuple[int, int]  # (id of the swap, number of the unit)


class Slot:
    """A device buffer and the two events that order its use.

    `ready` says that the slot holds the occupant's bytes, `free` that the last forward is done
    with them. `freed_on` is the stream on which `free` was recorded, None before the first time.
    """

    __slots__ = (
        "free",
        "freed_on",
        "in_use",
        "index",
        "job",
        "last_used",
        "mark",
        "memory",
        "occupant",
        "ready",
    )

    def __init__(self, index: int, memory: torch.Tensor, device: Device) -> None:
        self.index = index
        self.memory = memory
        self.ready: Event = device.new_event(timing=False)
        self.free: Event = device.new_event(timing=False)
        self.freed_on: Any = None
        self.occupant: Occupant | None = None
        self.job: Job | None = None  # None when ready was recorded by the forward thread itself
        self.mark: Mark | None = None  # of the copy under way, until a visit takes it over
        self.in_use = False
        self.last_used = 0


class Staging:
    """A pinned host buffer that holds, or is about to hold, a unit until its copy is enqueued.

    It is made of a few chunks, because each is locked up to the next power of two.
    `read` is the job that fills it, `copy` the one that enqueues the copy once the read is over,
    and `jobs` are all that must be over before anybody may write here again; `copied` then says
    that the last copy to the device is done. `occupant` is the transfer whose unit it holds, None
    as soon as the copy is enqueued or will be by a reader.
    """

    __slots__ = (
        "chunks",
        "copied",
        "copy",
        "jobs",
        "landing",
        "occupant",
        "read",
        "read_ended",
        "read_started",
        "torn",
        "turn",
        "used",
    )

    def __init__(self, chunks: Sequence[torch.Tensor], device: Device) -> None:
        self.chunks = tuple(chunks)
        starts = accumulate((chunk.numel() for chunk in chunks[:-1]), initial=0)
        self.landing = Landing(tuple(starts), tuple(chunk.data_ptr() for chunk in chunks))
        self.copied: Event = device.new_event(timing=False)
        self.occupant: object = None
        self.read: Job | None = None
        self.copy: Job | None = None
        self.jobs: list[Job] = []
        self.read_started: float | None = None
        self.read_ended: float | None = None
        self.torn = False  # a copy is enqueued and `copied` not recorded after it
        self.used = False
        self.turn = 0  # when it was given to a unit last

    @property
    def is_claimed(self) -> bool:
        """Whether a reader will enqueue a copy from here."""
        return self.copy is not None and not self.copy.done


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """How much memory a pool holds, in bytes, and how many threads read for it."""

    slots: int
    slot_bytes: int
    staging_buffers: int = 0
    staging_bytes: int = 0
    decode_bytes: int = 0
    readers: int = READERS


class Pool:
    """Slots, staging and decode memory on one device, with a copy stream and reader threads."""

    def __init__(self, device: Device, sizes: PoolSizes) -> None:
        self.device = device
        self.sizes = sizes
        self.copies = device.new_stream()
        self.readers = ReaderPool(sizes.readers)
        self.sentences: list[str] = []
        self.files: DiskStore | None = None  # closed with the pool when nobody else does
        # Memory made in inference mode could not be written outside it (and the other way round).
        with torch.inference_mode(False):
            self.slots = [
                Slot(i, device.allocate_slot(sizes.slot_bytes), device) for i in range(sizes.slots)
            ]
            self.staging = [self._staging(sizes) for _ in range(sizes.staging_buffers)]
            self.decode = device.allocate(sizes.decode_bytes) if sizes.decode_bytes else None
        self.decoded: Event = device.new_event(timing=False)
        self.decoded_on: Any = None
        # Readers and the forward thread both enqueue on the copy stream, one unit at a time.
        self.enqueue_lock = threading.Lock()
        self._turn = 0
        self._uses = 0

    @property
    def pinned_bytes(self) -> int:
        chunks = [chunk for staging in self.staging for chunk in staging.chunks]
        return sum(chunk.numel() for chunk in chunks if chunk.is_pinned())

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

    def touch(self, slot: Slot) -> None:
        """Notes that the slot was used just now."""
        self._uses += 1
        slot.last_used = self._uses

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
        with torch.inference_mode(False):
            self.staging = [self._staging(self.sizes) for _ in range(2)]
        return True

    def abandon(self) -> None:
        """The model went without a close: ends all work before the memory goes with it."""
        self.readers.close()
        self.device.synchronize()  # the copy engine may still write to slots
        if self.files is not None:
            self.files.close()
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
