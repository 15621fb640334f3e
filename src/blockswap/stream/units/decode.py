"""When a unit is decoded: as it is entered, on the compute stream, into one buffer that all share.

So a stored form of any size costs one buffer of the compute form. What each step does is the
business of the room `decode`; here is only what it must wait for.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ..pool.pool import Pool


class Decode:
    """Runs a unit's decoding, from any slot into the pool's decode buffer."""

    def __init__(self, runs: Sequence[Sequence[Callable[[], None]]]) -> None:
        """`runs[s]` are the prepared steps that decode the unit out of slot s, in order."""
        self._runs = runs

    def run(self, pool: Pool, slot: int, stream: Any) -> None:
        """Enqueues the steps on `stream`, the current one."""
        if pool.decoded_on is not None and pool.decoded_on != stream:
            # A forward on another stream may still read the buffer that is overwritten here.
            pool.device.wait(stream, pool.decoded)
        for run in self._runs[slot]:
            run()
