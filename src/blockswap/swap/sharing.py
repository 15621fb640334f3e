"""The swaps that share one pool, and what they hold on the device together.

Mostly there is one. Members are known weakly: a model may go while another one goes on.
"""

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..plan.joint import together_bytes
from ..stream.pool import Pool

if TYPE_CHECKING:
    from .corrector import Corrector
    from .handle import Swap
    from .residency import Residency


class Sharing:
    """A pool and the swaps that use it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._swaps: list[weakref.ref[Swap]] = []
        self._residencies: list[weakref.ref[Residency]] = []
        self._correctors: list[weakref.ref[Corrector]] = []

    def add(self, swap: "Swap") -> None:
        self._swaps.append(weakref.ref(swap))

    def add_corrected(self, residency: "Residency", corrector: "Corrector") -> None:
        """A swap whose residents may change."""
        self._residencies.append(weakref.ref(residency))
        self._correctors.append(weakref.ref(corrector))

    def swaps(self) -> "Iterator[Swap]":
        """Those that are open."""
        found = (reference() for reference in self._swaps)
        return (swap for swap in found if swap is not None and not swap.closed)

    def device_bytes(self) -> int:
        """Weights of all open swaps, with slots and decode buffer once."""
        plans = [swap.plan for swap in self.swaps()]
        return together_bytes(plans, self.pool.device.granularity)

    def settle(self) -> None:
        """All swaps are open: what they do not hold on the device by now is somebody else's."""
        for reference in self._correctors:
            corrector = reference()
            if corrector is not None:
                corrector.settle()

    def release_others(self, own: "Residency") -> tuple[str, ...]:
        """Lets the residents of all other swaps go, between forwards; the names of their units."""
        released: list[str] = []
        for reference in self._residencies:
            residency = reference()
            if residency is not None and residency is not own and residency.connected:
                leaving = [u.name for u in residency.units() if u.resident and u.demotable]
                released += residency.demote(leaving)
        return tuple(released)
