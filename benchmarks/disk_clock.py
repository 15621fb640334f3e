"""Disk reads on the virtual clock: a seam around the disk store and its jobs.

The simulator knows device time and one disk, but not which host thread waits for which. Here the
reads of reader threads take their time from that disk, and time is handed over where threads hand
work over:

    forward thread asks  ->  reader starts no earlier
    reader has finished  ->  whoever waits for the job goes on no earlier

The disk serves jobs in the order in which they were asked for, as the real threads mostly find
it; without that rule the operating system's scheduler would decide the figures.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from unittest import mock

from benchmarks.simulator import sim
from blockswap.store.disk import DiskStore
from blockswap.store.file_slab import FileRun
from blockswap.store.readers import Job, Piece


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


class _ClockedJob(Job):
    """A job that carries virtual time from the thread that asks to the thread that waits."""

    queue = _Queue()
    of_thread = threading.local()

    def __init__(self, pieces: Sequence[Piece], finish: Piece, *, keep: object = None) -> None:
        super().__init__(
            [self._clocked(piece) for piece in pieces], self._clocked_finish(finish), keep=keep
        )
        self._asked_at = sim.clock.mark()
        self._read_at = self._done_at = self._asked_at
        self._latest = threading.Lock()
        self.number = self.queue.number()

    @property
    def done(self) -> bool:
        """Whether it is done by the asking thread's clock; in real time it may be done already."""
        return super().done and sim.clock.now() >= self._done_at

    def wait(self, timeout: float | None = None) -> bool:
        finished = super().wait(timeout)
        if finished:
            sim.clock.join(self._done_at)
        return finished

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
            self._done_at = sim.clock.mark()

        return run

    def _complete(self) -> None:
        self.queue.wait_for_turn(self.number)  # a job that failed before its first read
        super()._complete()
        self.queue.next()


_read_piece = DiskStore.read_piece


def _clocked_read(
    store: DiskStore, index: int, run: FileRun, span: tuple[int, int], address: int
) -> None:
    job: _ClockedJob = _ClockedJob.of_thread.job
    job.queue.wait_for_turn(job.number)
    _read_piece(store, index, run, span, address)
    sim.disk_read(span[1])


@contextlib.contextmanager
def clocked_disk() -> Iterator[None]:
    """While active, every read that the engine asks for takes virtual time."""
    _ClockedJob.queue = _Queue()
    with (
        mock.patch("blockswap.stream.transfer.Job", _ClockedJob),
        mock.patch.object(DiskStore, "read_piece", _clocked_read),
    ):
        yield
