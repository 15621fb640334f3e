"""What happens when Python exits during a forward: it stops, or is left after 10 s; reads end.

A daemon's thread may be in the middle of a forward when the interpreter ends. It is not told; when
it comes to the engine next it rests there, without a word, and readers end what they have begun.
"""

import atexit
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

# How long a block that computes may hold up the end. After that it is left as it is.
PATIENCE_SECONDS = 10.0


class Settling(Protocol):
    """A pool that is still open."""

    def settle_at_exit(self) -> None: ...


begun = False
_rested: set[int | None] = set()
_open: "weakref.WeakSet[Settling]" = weakref.WeakSet()
_ender: threading.Thread | None = None


def settle_later(pool: Settling) -> None:
    """`pool` is settled when the interpreter ends, if it is still there then."""
    _open.add(pool)


def rest() -> None:
    """For ever, unless this is the thread that ends the interpreter."""
    here = threading.current_thread()
    if here is _ender:
        return
    _rested.add(here.ident)
    never = threading.Lock()
    never.acquire()
    never.acquire()


def until_rested(running: Callable[[], threading.Thread | None]) -> None:
    """Waits until the thread that `running` names, if any, rests, is over, or is taking long."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        thread = running()
        if thread is None or thread is _ender or not thread.is_alive() or thread.ident in _rested:
            return
        time.sleep(0.001)


def _settle() -> None:
    global begun, _ender
    _ender, begun = threading.current_thread(), True
    for pool in list(_open):
        pool.settle_at_exit()


atexit.register(_settle)
