"""Disk reads on the virtual clock: a seam around the disk store and its jobs.

The simulator knows device time and one disk, but not which host thread waits for which. Here the
reads of reader threads take their time from that disk, and time is handed over where threads hand
work over:

    forward thread asks  ->  reader starts no earlier
    reader has finished  ->  whoever waits for the job goes on no earlier

The disk serves jobs in the order in which they were asked for, as the real threads mostly find
it, and a read ends only while the forward thread waits for one: before that it might still do
something at an earlier virtual time, such as enqueue a copy in front of the reader's. Without
these rules the operating system's scheduler would decide the figures.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from unittest import mock

import simaccel as sim
from blockswap.store.disk import DiskStore
from blockswap.store.file_slab import FileRun
from blockswap.store.readers import Follower, Job, Piece


class _Queue:
    """Whose turn at the disk it is, by the number of the job."""

    def __init__(self) -> None:
        self._turn = 0
        self._asked = 0
        self._changed = threading.Condition()

    def number(self) -> int:
        with self._changed:
            self._asked += 1
            return self._asked - 1

    def wait_for_turn(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == number)

    def next(self) -> None:
        with self._changed:
            self._turn += 1
            self._changed.notify_all()


class _Asker:
    """The forward thread as readers see it: at work, or waiting for a job."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._waits_for: _Clocked | None = None
        self._gone = False
        self._changed = threading.Condition()

    def waits(self, job: "_Clocked") -> None:
        """Called by whoever begins to wait for `job`."""
        with self._changed:
            if threading.get_ident() == self._thread and not job.ended:
                self._waits_for = job
                self._changed.notify_all()

    def ends(self, job: "_Clocked") -> None:
        """Called before anybody can see that `job` is done: who waited for it is at work again."""
        with self._changed:
            job.ended = True
            if self._waits_for is job:
                self._waits_for = None

    def await_waiting(self) -> None:
        """Until the forward thread can do nothing more before another job ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._gone or self._waits_for is not None)

    def go(self) -> None:
        """It has measured what it wanted: nobody has to wait for it."""
        with self._changed:
            self._gone = True
            self._changed.notify_all()


class _Clocked(Job):
    """A job that is done at a virtual time, which whoever waits for it takes over."""

    asker = _Asker()
    ended = False
    done_at = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.asker.waits(self)
        finished = super().wait(timeout)
        if finished:
            sim.clock.join(self.done_at)
        return finished

    def _end(self) -> None:
        self.done_at = sim.clock.mark()
        self.asker.ends(self)
        super()._end()


class _ClockedFollower(_Clocked, Follower):
    """A copy: the reader that has read enqueues it, by the reader's clock."""


class _ClockedRead(_Clocked):
    """A read: it takes the disk's time, and begins no earlier than it was asked for."""

    queue = _Queue()
    of_thread = threading.local()

    def __init__(self, pieces: Sequence[Piece], finish: Piece, *, keep: object = None) -> None:
        super().__init__(
            [self._clocked(piece) for piece in pieces], self._clocked_finish(finish), keep=keep
        )
        self._asked_at = self._read_at = sim.clock.mark()
        self._latest = threading.Lock()
        self.number = self.queue.number()

    def _clocked(self, piece: Piece) -> Piece:
        def run() -> None:
            self.of_thread.job = self
            sim.clock.join(self._asked_at)
            piece()
            with self._latest:
                self._read_at = max(self._read_at, sim.clock.mark())

        return run

    def _clocked_finish(self, finish: Piece) -> Piece:
        def run() -> None:
            sim.clock.join(self._read_at)
            finish()

        return run

    def _complete(self) -> None:
        self.queue.wait_for_turn(self.number)  # a job that failed before its first read
        self.asker.await_waiting()
        super()._complete()
        self.queue.next()


_read_piece = DiskStore.read_piece


def _clocked_read(
    store: DiskStore, index: int, run: FileRun, span: tuple[int, int], address: int
) -> None:
    job: _ClockedRead = _ClockedRead.of_thread.job
    job.queue.wait_for_turn(job.number)
    _read_piece(store, index, run, span, address)
    sim.disk_read(span[1])


@contextlib.contextmanager
def clocked_disk() -> Iterator[None]:
    """While active, every read that the engine asks for takes virtual time."""
    _ClockedRead.queue, _Clocked.asker = _Queue(), _Asker()
    with (
        mock.patch("blockswap.stream.units.transfer.Job", _ClockedRead),
        mock.patch("blockswap.stream.units.transfer.Follower", _ClockedFollower),
        mock.patch.object(DiskStore, "read_piece", _clocked_read),
    ):
        try:
            yield
        finally:
            _Clocked.asker.go()
