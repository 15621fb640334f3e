"""Slots on the device and staging on the host: the events and jobs that order their use.

Staging    pinned host memory between a file (or pageable memory) and a slot
Slot       device memory that the unit's weights are views of while it runs
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from ...store.landing import Landing
from ...store.readers import Job
from ..device import Device, Event
from ..marks import Mark

# (number of the swap in its pool, number of the unit). Not an `id`: those are used again.
Occupant = tuple[int, int]


class Slot:
    """A device buffer and the two events that order its use.

    `ready` says that the slot holds the occupant's bytes, `free` that the last forward is done
    with them. `freed_on` is the stream on which `free` was recorded, None before the first time.
    `gather` stands for the parts of other ranks, until they are on their way; `gathered` says that
    `ready` was recorded after such parts, and no copy has waited for it since.
    """

    __slots__ = (
        "free",
        "freed_on",
        "gather",
        "gathered",
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
        self.gather: object = None
        self.gathered = False
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
