"""Reader threads: how many, which read comes next, what becomes of failed and stuck ones.

Order matters: a reader takes pieces of a later job only when every piece of the earlier ones is
taken. A reader may therefore wait for an earlier job to finish (for its staging buffer) without
ever waiting for itself.

Ctrl-C may strike the forward thread between any two lines of Python, the standard library's own
included: inside `Condition.__exit__` it would leave a lock held for ever. So what both sides touch
here is made of plain locks and a `SimpleQueue`, whose operations are single steps in C.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..errors import BlockSwapError, ReadError, StateError

Piece = Callable[[], None]

# Enough to keep a disk's queue filled; more only take turns.
READERS = 4

# How long closing waits for a disk that does not answer before it goes on without it.
STUCK_SECONDS = 30.0


class _Latch:
    """A door that opens once."""

    __slots__ = ("_lock", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        if not self.is_open:
            self.is_open = True
            self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        """Waits, in slices: a waiter interrupted with the lock in hand must not stop the others."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self.is_open:
            left = 1.0 if end is None else min(1.0, end - time.monotonic())
            if left <= 0:
                return False
            if self._lock.acquire(timeout=left):
                self._lock.release()
        return True


def _nothing() -> None:
    """The only piece of a job that has none."""


class Job:
    """Pieces of work that run on any reader in any order, then one `finish`, then done.

    The first exception of a piece or of `finish` is kept, the pieces left and `finish` are left
    out; waiting for the job raises nothing, `error` tells. `keep` is held until the job is done:
    the memory that its pieces write to.
    """

    def __init__(self, pieces: Sequence[Piece], finish: Piece, *, keep: object = None) -> None:
        self.error: BaseException | None = None
        self._waiting: deque[Piece] = deque(pieces or (_nothing,))
        self._unfinished = len(self._waiting)
        self._taken = False
        self._finish: Piece | None = finish
        self._keep = keep
        self._lock = threading.Lock()
        self._done = _Latch()
        self.followers: deque[Follower] = deque()

    @property
    def done(self) -> bool:
        return self._done.is_open

    @property
    def taken(self) -> bool:
        """Whether a reader has begun it."""
        return self._taken

    def wait(self, timeout: float | None = None) -> bool:
        """Waits on the host until the job is done; True unless `timeout` seconds ran out first."""
        return self._done.wait(timeout)

    def raise_error(self, what: str) -> None:
        """Raises what made the job fail, if anything did; `what` it was to bring is for messages.

        Each time a new exception, caused by the one that is kept: a kept one that is raised itself
        would hold the frames of the forward it ended, and all their tensors with them.
        """
        error = self.error
        if isinstance(error, BlockSwapError):
            raise type(error)(*error.args) from error
        if error is not None:
            cause = str(error) or type(error).__name__
            raise ReadError(f"reading {what} failed: {cause}") from error

    def take(self) -> tuple[Piece, bool]:
        """The next piece, and whether it is the last one to take. Called under the pool's lock."""
        self._taken = True
        piece = self._waiting.popleft()
        return piece, not self._waiting

    def run(self, piece: Piece) -> None:
        """Runs a piece that was taken, and `finish` after the last one."""
        try:
            if self.error is None:
                piece()
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that waits
            self.error = self.error or error
        with self._lock:
            self._unfinished -= 1
            last = self._unfinished == 0
        if last:
            self._complete()

    def cancel(self, error: BaseException) -> None:
        """Ends a job that no reader has begun, and none will."""
        self.error = self.error or error
        self._end()

    def _complete(self) -> None:
        try:
            if self.error is None and self._finish is not None:
                self._finish()
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that waits
            self.error = error
        finally:
            self._end()

    def _end(self) -> None:
        # A slot remembers its job, and the job's closures the slot: let go of them here.
        self._finish = self._keep = None
        self._waiting.clear()
        self._done.open()
        # After the door is open: who comes to follow later sees that it is.
        while self.followers:
            self.followers.popleft().lead_on(self.error)


class Follower(Job):
    """A job that is not queued: the reader that ends the job it follows runs its `finish`.

    Either that reader ends it or the one who asked for it does, whoever claims it first.
    """

    def __init__(self, finish: Piece) -> None:
        super().__init__((), finish)
        self._claims: list[str] = []  # the first one counts; appending is a single step

    def follow(self, leader: Job) -> bool:
        """True if a reader runs `finish` when `leader` ends, or hands its error on.

        False if `leader` is over: then nobody else will, and what there is to do is the caller's.
        """
        leader.followers.append(self)
        return not (leader.done and self._claim("asker"))

    def withdraw(self) -> None:
        """Ends it, unless a reader has begun it. An interrupted call may be repeated."""
        if self._claim("asker"):
            self.cancel(StateError("a copy was given up before its read was over"))

    def lead_on(self, error: BaseException | None) -> None:
        """The job it follows has ended."""
        if self._claim("reader"):
            self.error = error
            self._complete()

    def _claim(self, who: str) -> bool:
        self._claims.append(who)
        return self._claims[0] == who


class ReaderPool:
    """Reader threads, started with the first job and stopped by `close()`."""

    def __init__(self, threads: int = READERS) -> None:
        self._count = threads
        self._jobs: deque[Job] = deque()
        self._lock = threading.Lock()  # guards the jobs; never held while a piece runs
        # A token wakes a reader, which then works until no piece is left; None ends it.
        self._tokens: queue.SimpleQueue[bool | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, job: Job) -> None:
        """Queues `job`. After `close` it just fails. Raises ReadError if no thread can be had."""
        with self._lock:
            if self._closed:
                job.cancel(StateError("a read was asked for after its swap was closed"))
                return
            if not self._threads:
                self._start()
            # Woken readers wait for the lock. The append comes last, in one step: an interrupt
            # comes before all of this or after it.
            for _ in self._threads:
                self._tokens.put(True)
            self._jobs.append(job)

    def cancel_orphan(self, job: Job) -> None:
        """Ends a job that an interrupt kept from being queued; only its submitter may call this.

        A follower, which is never queued, is withdrawn.
        """
        if isinstance(job, Follower):
            job.withdraw()
            return
        with self._lock:
            if not job.done and not job.taken and job not in self._jobs:
                job.cancel(StateError("a read was interrupted before it was queued"))

    def close(self, timeout: float = STUCK_SECONDS) -> list[str]:
        """Lets queued work finish, stops the threads; names those a stuck disk still holds.

        Waits `timeout` seconds in all, and not again when it is called again.
        """
        with self._lock:
            end = time.monotonic() + (0.0 if self._closed else timeout)
            self._closed = True
            self._tokens.put(None)  # each reader passes it on
        here = threading.current_thread()  # the garbage collector may close us from anywhere
        for thread in self._threads:
            if thread is not here:
                thread.join(max(0.0, end - time.monotonic()))
        self._threads = [t for t in self._threads if t is not here and t.is_alive()]
        with self._lock:
            for job in self._jobs:
                if not job.taken:
                    job.cancel(StateError("its swap was closed before the read began"))
            self._jobs.clear()
        return [thread.name for thread in self._threads]

    def _start(self) -> None:
        for number in range(self._count):
            name = f"blockswap-reader-{number}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if not self._threads:
                    raise ReadError(
                        f"no reader thread could be started ({error}): close other programs, then "
                        "run the forward again"
                    ) from error
                return  # fewer readers are slower, not wrong
            self._threads.append(thread)

    def _work(self) -> None:
        token: bool | None = True
        while token is not None:
            token = self._tokens.get()
            while (taken := self._next()) is not None:
                job, piece = taken
                job.run(piece)
                del job, piece, taken  # a parked reader must not keep buffers alive
        self._tokens.put(None)

    def _next(self) -> tuple[Job, Piece] | None:
        with self._lock:
            if not self._jobs:
                return None
            job = self._jobs[0]
            piece, last = job.take()
            if last:
                self._jobs.popleft()
            return job, piece
