"""A few threads that do nothing but wait in the kernel for reads, first come, first served.

Order matters: a job's pieces are queued together, so every piece of an earlier job has been taken
by some reader before any piece of a later one. A reader may therefore wait for an earlier job to
finish (for its staging buffer) without ever waiting for itself.
"""

import queue
import threading
from collections.abc import Callable, Sequence

from blockswap.errors import StateError

Piece = Callable[[], None]

# How long closing waits for a disk that does not answer before it goes on without it.
STUCK_SECONDS = 30.0


class Job:
    """Pieces of work that run on any reader in any order, then one `finish`, then done.

    The first exception of a piece or of `finish` is kept and `finish` is left out; waiting for
    the job raises nothing, `error` tells.
    """

    def __init__(self, pieces: Sequence[Piece], finish: Piece, *, keep: object = None) -> None:
        """`keep` is held as long as the job: the memory that its pieces write to."""
        self.pieces = pieces
        self._keep = keep
        self.error: BaseException | None = None
        self._finish = finish
        self._left = len(pieces)
        self._lock = threading.Lock()
        self._done = threading.Event()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits on the host until the job is done; True unless `timeout` seconds ran out first."""
        return self._done.wait(timeout)

    def cancel(self, error: BaseException) -> None:
        """Ends a job of which no piece will run any more."""
        self.error = self.error or error
        self._done.set()

    def run_piece(self, piece: Piece | None) -> None:
        """Runs one piece (None: a job without pieces), and `finish` after the last one."""
        try:
            if piece is not None and self.error is None:
                piece()
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that waits
            self.error = self.error or error
        with self._lock:
            self._left -= 1
            last = self._left <= 0
        if last:
            self._complete()

    def _complete(self) -> None:
        try:
            if self.error is None:
                self._finish()
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that waits
            self.error = error
        finally:
            self._done.set()


class ReaderPool:
    """`threads` reader threads, started with the first job and stopped by `close()`."""

    def __init__(self, threads: int = 4) -> None:
        self._count = threads
        self._queue: queue.SimpleQueue[tuple[Job, Piece | None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, job: Job) -> None:
        """Queues every piece of `job`, together and in order. After close the job just fails."""
        if self._closed:
            job.cancel(StateError("a read was asked for after its swap was closed: open it again"))
            return
        if not self._threads:
            self._start()
        for piece in job.pieces or (None,):
            self._queue.put((job, piece))

    def close(self, timeout: float = STUCK_SECONDS) -> list[str]:
        """Lets queued work finish, stops the threads; names those a stuck disk still holds."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        here = threading.current_thread()  # the garbage collector may close us from anywhere
        for thread in self._threads:
            if thread is not here:
                thread.join(timeout)
        stuck = [t.name for t in self._threads if t is not here and t.is_alive()]
        self._threads.clear()
        return stuck

    def _start(self) -> None:
        self._threads = [
            threading.Thread(target=self._work, name=f"blockswap-reader-{i}", daemon=True)
            for i in range(self._count)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            job, piece = item
            job.run_piece(piece)
            del job, piece, item  # a parked reader must not keep buffers alive
