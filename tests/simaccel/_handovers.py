"""Carries virtual time along when one host thread hands work to another.

Code under test knows nothing of `clock.mark` and `clock.join`. While `follow_handovers()` is
active, Python's own ways of handing over do it: the receiver's "now" becomes no earlier than the
giver's was when it gave.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

from ._api import clock


class _SimpleQueue(queue.SimpleQueue):
    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put((clock.mark(), item), block, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        token, item = super().get(block, timeout)
        clock.join(token)
        return item

    def put_nowait(self, item: Any) -> None:
        self.put(item, False)

    def get_nowait(self) -> Any:
        return self.get(False)


class _Queue(queue.Queue):
    def _init(self, maxsize: int) -> None:
        self.queue: deque = deque()

    def _put(self, item: Any) -> None:
        self.queue.append((clock.mark(), item))

    def _get(self) -> Any:
        token, item = self.queue.popleft()
        clock.join(token)
        return item


def _with_time_of_now(function: Callable) -> Callable:
    """The function, to run in another thread that first takes over this thread's time."""
    token = clock.mark()

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        clock.join(token)
        return function(*args, **kwargs)

    return wrapper


def _give_after(cls: type, give: str, take: str) -> Any:
    """Patches for a class whose `give` method hands over to whoever returns from `take`."""
    original_give, original_take = getattr(cls, give), getattr(cls, take)

    def giving(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._sim_token = max(clock.mark(), getattr(self, "_sim_token", 0.0))
        return original_give(self, *args, **kwargs)

    def taking(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original_take(self, *args, **kwargs)
        finally:
            clock.join(getattr(self, "_sim_token", 0.0))

    return mock.patch.multiple(cls, **{give: giving, take: taking})


@contextlib.contextmanager
def follow_handovers() -> Iterator[None]:
    """While active, host threads that hand over to each other hand over their virtual time, too.

    Followed: Thread.start and join, Event.set and wait, Future.set_result and result,
    ThreadPoolExecutor.submit, and those queue.Queue and queue.SimpleQueue made while it is active.
    Not followed: locks, conditions, semaphores, polling (`is_set`). Time is deterministic as long
    as the order of hand-overs is: with one worker per queue, not with several.
    """
    start, submit, run = threading.Thread.start, ThreadPoolExecutor.submit, threading.Thread.run

    def starting(self: threading.Thread) -> None:
        self.run = _with_time_of_now(self.run)  # type: ignore[method-assign]
        start(self)

    def running(self: threading.Thread) -> None:
        try:
            run(self)
        finally:
            self._sim_token = clock.mark()  # type: ignore[attr-defined]

    def submitting(self: ThreadPoolExecutor, function: Callable, /, *args: Any, **kwargs: Any):
        return submit(self, _with_time_of_now(function), *args, **kwargs)

    with (
        mock.patch.object(queue, "SimpleQueue", _SimpleQueue),
        mock.patch.object(queue, "Queue", _Queue),
        mock.patch.object(ThreadPoolExecutor, "submit", submitting),
        _give_after(threading.Event, "set", "wait"),
        _give_after(Future, "set_result", "result"),
        mock.patch.object(threading.Thread, "run", running),
        mock.patch.object(threading.Thread, "start", starting),
        mock.patch.object(threading.Thread, "join", _joining(threading.Thread.join)),
    ):
        yield


def _joining(join: Callable) -> Callable:
    def joining(self: threading.Thread, timeout: float | None = None) -> None:
        join(self, timeout)
        if not self.is_alive():
            clock.join(getattr(self, "_sim_token", 0.0))

    return joining
