"""Own time of chosen functions while they run inside each other."""

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock


class Stopwatch:
    """Adds up, per section, the time spent in its functions and in no other section's.

    Each measured call costs the stopwatch itself some tenths of a microsecond, which end up in the
    section around it: read the figures as shares, and take the total from a run without it.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[float] = []  # time that inner sections took, per section under way

    def watch(self, section: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""
        seconds, under_way, now = self.seconds, self._open, time.perf_counter

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            under_way.append(0.0)
            began = now()
            try:
                return function(*args, **kwargs)
            finally:
                took = now() - began
                seconds[section] += took - under_way.pop()
                if under_way:
                    under_way[-1] += took

        return timed

    @contextlib.contextmanager
    def watching(self, functions: Mapping[str, tuple[tuple[Any, str], ...]]) -> Iterator[None]:
        """While active, `functions[section]` = ((owner, name), ...) are timed."""
        with contextlib.ExitStack() as undo:
            for section, places in functions.items():
                for owner, name in places:
                    timed = self.watch(section, getattr(owner, name))
                    undo.enter_context(mock.patch.object(owner, name, timed))
            yield
