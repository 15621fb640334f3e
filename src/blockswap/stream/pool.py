"""The pool: device memory and helpers that a swap borrows, and that outlive it.

    slots      a few device buffers, each as large as the largest streamed unit
    staging    pinned host buffers between a file (or pageable memory) and a slot
    decode     one device buffer for weights whose stored form is not their compute form
    copies     the copy stream;  readers: the threads that read files

Two experts or two clones of a model can share one pool: a slot's occupant names its swap too.
"""

import threading
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..store.disk import DiskStore
from ..store.file_slab import SECTOR
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
    """A pinned host buffer. `copied` says that its last copy to the device is done."""

    __slots__ = ("copied", "job", "memory", "used")

    def __init__(self, memory: torch.Tensor, device: Device) -> None:
        self.memory = memory
        self.copied: Event = device.new_event(timing=False)
        self.job: Job | None = None
        self.used = False

    @property
    def address(self) -> int:
        return self.memory.data_ptr()


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
        return sum(s.memory.numel() for s in self.staging if s.memory.is_pinned())

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

    def next_staging(self) -> Staging:
        """The staging buffer whose turn it is; its earlier job may still be under way."""
        staging = self.staging[self._turn % len(self.staging)]
        self._turn += 1
        return staging

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
            staging.job = None
        self.slots.clear()
        self.staging.clear()
        self.decode = None

    def _staging(self, sizes: PoolSizes) -> Staging:
        nbytes = sizes.staging_bytes
        memory = self.device.pin(nbytes)
        if memory is not None and memory.data_ptr() % SECTOR:
            # A direct read wants sector-aligned memory, a pinned allocation need not be.
            memory = self.device.pin(nbytes + SECTOR)
        if memory is None:
            self.sentences.append(
                f"pinning {format_bytes(nbytes)} of staging memory failed: copies from it are not "
                "hidden under compute"
            )
            memory = host_buffer(nbytes)
        return Staging(aligned(memory, nbytes), self.device)
