"""How a unit's bytes get into a slot, one class for each place they can come from.

    PinnedCopy   pinned RAM  -> slot                 enqueued by the forward thread, at once
    StagedCopy   file or pageable RAM -> staging -> slot    by reader threads, two hops overlapped
    DirectRead   file -> slot                        the compute device is the CPU itself

`start` never waits for the device. Where readers are involved `slot.job` tells when *ready* has
been recorded: waiting on an event that nobody has recorded yet would be a no-op, and a race.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from ..store.readers import Job, Piece
from .marks import Mark, Recorder
from .pool import Pool, Slot, Staging


class Source(Protocol):
    """A store as seen from here: reads of one unit to an address, and what completes them."""

    read_bytes: int

    def pieces(self, address: int) -> Sequence[Piece]: ...

    def settle(self, address: int) -> int: ...


# (target in the slot, source in host memory) of each copy of a unit.
Pairs = tuple[tuple[torch.Tensor, torch.Tensor], ...]


class Transfer(Protocol):
    """Brings one unit into any slot of the pool. `copied_bytes` are those from host to device."""

    copied_bytes: int

    def start(self, slot: Slot, mark: Mark) -> None: ...


class PinnedCopy:
    """One flat copy per run of pinned memory, on the copy stream."""

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
    """Reader threads fill a staging buffer, the last of them enqueues the copy to the slot."""

    def __init__(self, pool: Pool, source: Source, nbytes: int, recorder: Recorder) -> None:
        self._pool = pool
        self._source = source
        self._recorder = recorder
        self.copied_bytes = nbytes
        self._targets = [slot.memory.narrow(0, 0, nbytes) for slot in pool.slots]
        self._origins = {id(s): s.memory.narrow(0, 0, nbytes) for s in pool.staging}

    def start(self, slot: Slot, mark: Mark) -> None:
        staging = self._pool.next_staging()
        earlier = staging.job
        if earlier is not None:
            self._pool.readers.cancel_orphan(earlier)

        def guard() -> None:
            self._wait_until_writable(staging, earlier)

        def finish() -> None:
            _note_read(self._recorder, mark, self._source, staging.address)
            pair = (self._targets[slot.index], self._origins[id(staging)])
            _enqueue(self._pool, slot, mark, (pair,), staging=staging)
            self._recorder.count_copies(1, self.copied_bytes)

        pieces = _timed(self._source.pieces(staging.address), mark, self._recorder.host_now, guard)
        # The job keeps the memory it writes to alive, whatever becomes of the pool meanwhile.
        job = Job(pieces, finish, keep=staging.memory)
        # Known to slot and staging before it can run: an interrupt in between leaves an orphan,
        # which whoever finds it cancels, and never a read that nobody knows of.
        slot.job = staging.job = job
        self._pool.readers.submit(job)

    def _wait_until_writable(self, staging: Staging, earlier: Job | None) -> None:
        """Runs in a reader thread, before it writes to the staging buffer."""
        if earlier is not None:
            earlier.wait()  # that job's copy is enqueued, or was given up
        if staging.used:
            # The copy engine reads the staging buffer; this thread overwrites it after that copy.
            staging.copied.synchronize()


class DirectRead:
    """Reader threads read into the slot itself: on the CPU a slot is plain RAM."""

    copied_bytes = 0

    def __init__(self, pool: Pool, source: Source, recorder: Recorder) -> None:
        self._pool = pool
        self._source = source
        self._recorder = recorder

    def start(self, slot: Slot, mark: Mark) -> None:
        # The forward that used this slot before has returned: on the host that is all there is.
        address = slot.memory.data_ptr()

        def finish() -> None:
            _note_read(self._recorder, mark, self._source, address)

        pieces = _timed(self._source.pieces(address), mark, self._recorder.host_now, None)
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
        mark.copy_started.record(copies)
        for target, source in pairs:
            target.copy_(source, non_blocking=True)
        mark.copy_ended.record(copies)
        slot.ready.record(copies)
        if staging is not None:
            staging.copied.record(copies)
            staging.used = True
        mark.has_copy = True


def _timed(
    pieces: Sequence[Piece],
    mark: Mark,
    now: Callable[[], float],
    guard: Callable[[], None] | None,
) -> list[Piece]:
    def timed(piece: Piece) -> Piece:
        def run() -> None:
            if guard is not None:
                guard()
            if mark.read_started is None:
                mark.read_started = now()
            piece()

        return run

    return [timed(piece) for piece in pieces]


def _note_read(recorder: Recorder, mark: Mark, source: Source, address: int) -> None:
    moved = source.settle(address)
    mark.read_ended = recorder.host_now()
    with recorder.count_lock:
        recorder.counters.reads += 1
        recorder.counters.read_bytes += source.read_bytes
        recorder.counters.moved_bytes += moved
