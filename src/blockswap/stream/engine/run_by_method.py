"""A unit that is run by a method of its own, in place of a call: when it is entered, and left.

Such methods are called one after another, by a forward of the whole model that knows the block's
parts. So the unit stays between two of them, and is left when another one is entered or the
model's forward ends: it would else be copied once for each method.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ..pool.run import Run


class Entered(Protocol):
    """What enters and leaves units."""

    run: Run | None

    def enter(self, index: int) -> None: ...

    def leave(self, index: int) -> None: ...


@contextmanager
def by_method(streamer: Entered, index: int) -> Iterator[None]:
    """While a method of unit `index` runs; inside a run of the unit nothing is to be done."""
    run = streamer.run
    if run is None or run.index != index or not run.goes_on():
        end_idle(streamer)
        streamer.enter(index)
        run = streamer.run
        assert run is not None, "entered"
        run.by_method = True
    run.methods += 1
    try:
        yield
    except BaseException:
        run.methods -= 1
        end_idle(streamer)
        raise
    run.methods -= 1


def end_idle(streamer: Entered) -> None:
    """Leaves the unit whose methods were called, and have returned."""
    run = streamer.run
    if run is not None and run.by_method and run.is_here and not run.calls_here():
        streamer.leave(run.index)
