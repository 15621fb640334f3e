"""How a unit's bytes get into a slot, and what each read and each copy waits for.

    PinnedCopy   pinned RAM  -> slot                 enqueued by the forward thread, at once
    StagedCopy   file or pageable RAM -> staging -> slot    read ahead by reader threads, two hops
                                                     overlapped
    DirectRead   file -> slot                        the compute device is the CPU itself

`start` never waits for the device. Where a reader has a part in it `slot.job` tells when *ready*
has been recorded: waiting on an event that nobody has recorded yet would be a no-op, and a race.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

import torch

from ...layout.shares import within
from ...store.landing import Landing
from ...store.readers import Follower, Job, Piece
from ..marks import Mark, Recorder
from ..pool.buffers import Slot, Staging
from ..pool.pool import Pool


class Source(Protocol):
    """A store as seen from here: reads of one unit to an address, and what completes them."""

    read_bytes: int

    def pieces(self, landing: Landing) -> Sequence[Piece]: ...

    def settle(self, landing: Landing) -> int: ...


# (target in the slot, source in host memory) of each copy of a unit.
Pairs = tuple[tuple[torch.Tensor, torch.Tensor], ...]


class Transfer(Protocol):
    """Brings one unit into any slot of the pool. `copied_bytes` are those from host to device.

    `ahead` is the copy whose read may be asked for before there is a slot, if there is one.
    `at_once`: the copy is enqueued when it is started, and waits for no read.
    """

    copied_bytes: int

    @property
    def at_once(self) -> bool: ...

    @property
    def ahead(self) -> "StagedCopy | None": ...

    def start(self, slot: Slot, mark: Mark) -> None: ...


class PinnedCopy:
    """One flat copy per run of pinned memory, on the copy stream."""

    ahead, at_once = None, True

    def __init__(
        self, pool: Pool, runs: Sequence[tuple[torch.Tensor, int]], recorder: Recorder
    ) -> None:
        self._pool = pool
        self._recorder = recorder
        self.copied_bytes = sum(source.numel() for source, _ in runs)
        # Every view that the hot path needs is made here, once.
        self._pairs: list[Pairs] = [
            tuple((slot.memory.narrow(0, at, source.numel()), source) for source, at in runs)
            for slot in pool.slots
        ]

    def start(self, slot: Slot, mark: Mark) -> None:
        slot.job = None
        pairs = self._pairs[slot.index]
        _enqueue(self._pool, slot, mark, pairs)
        self._recorder.count_copies(len(pairs), self.copied_bytes)


class StagedCopy:
    """Reader threads fill a staging buffer, ahead of the slots if they can; then it is copied.

    Where the read is over when the unit gets its slot, the forward thread enqueues the copy;
    else the reader that ends the read does.
    """

    at_once = False

    def __init__(
        self, pool: Pool, source: Source, spans: Sequence[tuple[int, int]], recorder: Recorder
    ) -> None:
        """`spans`: (start, size) of what is copied of the slab, as it lies in staging."""
        self._pool = pool
        self._source = source
        self._recorder = recorder
        self.copied_bytes = sum(size for _, size in spans)
        self._pairs: list[dict[int, Pairs]] = [
            {id(s): tuple(_pairs(slot.memory, s.chunks, spans)) for s in pool.staging}
            for slot in pool.slots
        ]

    @property
    def ahead(self) -> "StagedCopy":
        return self

    def read_ahead(self, keep: Collection[object]) -> bool:
        """Starts the read into a buffer that is free; False if only `keep` and copies are there."""
        staging = self._pool.free_staging(keep)
        if staging is None:
            return False
        self._read(staging)
        return True

    def start(self, slot: Slot, mark: Mark) -> None:
        staging = self._pool.staged(self)
        if staging is None or _has_failed(staging):
            # Nobody asked for it, or its read failed after it was asked for: read it now.
            staging = staging or self._pool.next_staging()
            self._read(staging)
        assert staging.read is not None, "a buffer with an occupant has its read"
        copy = Follower(lambda: self._copy(staging, slot, mark))
        # Known to slot and staging before a reader can know it: an interrupt in between leaves a
        # slot that has a job and holds nothing, which the next entry sets right.
        slot.job = staging.copy = copy
        staging.jobs.append(copy)
        if not copy.follow(staging.read):
            if staging.read.error is None:
                self._copy(staging, slot, mark)
                copy.withdraw()  # it is done: here, and not by a reader
                slot.job = None
            else:
                copy.cancel(staging.read.error)
        staging.occupant = None

    def _read(self, staging: Staging) -> None:
        """Asks for the unit's read into `staging`, from which nobody else will be served now."""
        pool, landing = self._pool, staging.landing
        staging.occupant = None
        pool.fill(staging)
        if staging.read is not None:
            pool.readers.cancel_orphan(staging.read)
        earlier = tuple(job for job in staging.jobs if not job.done)
        if staging.torn:
            self._record_copied(staging)

        def guard() -> None:
            self._wait_until_writable(staging, earlier)

        def finish() -> None:
            _settle(self._recorder, self._source, landing)
            staging.read_ended = self._recorder.host_now()

        def begin() -> None:
            staging.read_started = self._recorder.host_now()

        pieces = _guarded(self._source.pieces(landing), guard, begin)
        # The job keeps the memory it writes to alive, whatever becomes of the pool meanwhile.
        job = Job(pieces, finish, keep=staging.chunks)
        # Known to the buffer before it can run: an interrupt in between leaves an orphan, which
        # whoever finds it cancels, and never a read that nobody knows of.
        staging.read = job
        staging.jobs = [*earlier, job]
        pool.readers.submit(job)
        staging.occupant = self

    def _copy(self, staging: Staging, slot: Slot, mark: Mark) -> None:
        mark.read_started, mark.read_ended = staging.read_started, staging.read_ended
        pairs = self._pairs[slot.index][id(staging)]
        _enqueue(self._pool, slot, mark, pairs, staging=staging)
        self._recorder.count_copies(len(pairs), self.copied_bytes)

    def _record_copied(self, staging: Staging) -> None:
        """After an interrupt between a copy and its record: one that covers that copy, too."""
        with self._pool.enqueue_lock:
            staging.copied.record(self._pool.copies)
            staging.used = True
            staging.torn = False

    def _wait_until_writable(self, staging: Staging, earlier: Sequence[Job]) -> None:
        """Runs in a reader thread, before it writes to the staging buffer."""
        for job in earlier:
            job.wait()  # a read into the buffer is over; its copy is enqueued, or was given up
        if staging.used:
            # The copy engine reads the staging buffer; this thread overwrites it after that copy.
            staging.copied.synchronize()


class DirectRead:
    """Reader threads read into the slot itself: on the CPU a slot is plain RAM."""

    copied_bytes = 0
    ahead, at_once = None, False

    def __init__(self, pool: Pool, source: Source, recorder: Recorder) -> None:
        self._pool = pool
        self._source = source
        self._recorder = recorder

    def start(self, slot: Slot, mark: Mark) -> None:
        # The forward that used this slot before has returned: on the host that is all there is.
        landing = Landing.at(slot.memory.data_ptr())

        def begin() -> None:
            mark.read_started = self._recorder.host_now()

        def finish() -> None:
            _settle(self._recorder, self._source, landing)
            mark.read_ended = self._recorder.host_now()

        pieces = _guarded(self._source.pieces(landing), None, begin)
        slot.job = Job(pieces, finish, keep=slot.memory)
        self._pool.readers.submit(slot.job)


def _enqueue(
    pool: Pool,
    slot: Slot,
    mark: Mark,
    pairs: Pairs,
    *,
    staging: Staging | None = None,
) -> None:
    """Enqueues the copies into `slot` on the copy stream and records that it is ready."""
    device, copies = pool.device, pool.copies
    with pool.enqueue_lock, device.on(copies):
        if slot.freed_on is not None:
            # The compute stream reads the slot; the copy overwrites it after that forward.
            device.wait(copies, slot.free)
        if slot.gathered:
            # Other ranks' parts may still arrive there, for a unit that was brought and never run.
            device.wait(copies, slot.ready)
            slot.gathered = False
        mark.copy_started.record(copies)
        if staging is not None:
            staging.torn = True
        for target, source in pairs:
            target.copy_(source, non_blocking=True)
        mark.copy_ended.record(copies)
        slot.ready.record(copies)
        if staging is not None:
            staging.copied.record(copies)
            staging.used = True
            staging.torn = False
        mark.has_copy = True


def _guarded(
    pieces: Sequence[Piece], guard: Callable[[], None] | None, begin: Callable[[], None]
) -> list[Piece]:
    """`pieces`, each behind `guard`; the first of them calls `begin` when it may go on."""
    begun: list[bool] = []

    def guarded(piece: Piece) -> Piece:
        def run() -> None:
            if guard is not None:
                guard()
            if not begun:
                begun.append(True)
                begin()
            piece()

        return run

    return [guarded(piece) for piece in pieces]


def _pairs(
    target: torch.Tensor, chunks: Sequence[torch.Tensor], spans: Sequence[tuple[int, int]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(target, source) of each copy that brings `spans` out of a staging buffer."""
    at = 0
    for chunk in chunks:
        for start, size in within(at, chunk.numel(), spans):
            yield target.narrow(0, start, size), chunk.narrow(0, start - at, size)
        at += chunk.numel()


def _settle(recorder: Recorder, source: Source, landing: Landing) -> None:
    moved = source.settle(landing)
    with recorder.count_lock:
        recorder.counters.reads += 1
        recorder.counters.read_bytes += source.read_bytes
        recorder.counters.moved_bytes += moved


def _has_failed(staging: Staging) -> bool:
    return staging.read is not None and staging.read.error is not None
