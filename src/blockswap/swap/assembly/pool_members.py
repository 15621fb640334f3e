"""Swaps that share a pool: bytes they hold together; residents that leave for another's OOM.

Mostly there is one. Members are known weakly: a model may go while another one goes on.
"""

import weakref
from collections.abc import Iterator, Sequence
from typing import Protocol

from ...plan import SwapPlan
from ...plan.correction.promotion import Movable
from ...plan.joint_plan import together_bytes
from ...plan.timing.shared_link import RankRates
from ...stream.pool.pool import Pool


class Member(Protocol):
    """A swap that uses the pool."""

    plan: SwapPlan
    closed: bool


class Residents(Protocol):
    """The residents of one of the swaps, which may be let go."""

    @property
    def connected(self) -> bool: ...

    def units(self) -> Sequence[Movable]: ...

    def demote(self, names: Sequence[str]) -> tuple[str, ...]: ...


class Measuring(Protocol):
    """Who measures one of the swaps."""

    def settle(self) -> None: ...


class Sharing:
    """A pool and the swaps that use it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.rates: RankRates | None = None  # where several ranks fill the pool's slots
        self._swaps: list[weakref.ref[Member]] = []
        self._residencies: list[weakref.ref[Residents]] = []
        self._correctors: list[weakref.ref[Measuring]] = []

    def add(self, swap: Member) -> None:
        if not any(known is swap for known in self.swaps()):
            self._swaps.append(weakref.ref(swap))

    def add_corrected(self, residency: Residents, corrector: Measuring) -> None:
        """A swap whose residents may change."""
        self._residencies.append(weakref.ref(residency))
        self._correctors.append(weakref.ref(corrector))

    def swaps(self) -> Iterator[Member]:
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

    def release_others(self, own: Residents) -> tuple[str, ...]:
        """Lets the residents of all other swaps go, between forwards; the names of their units."""
        released: list[str] = []
        for reference in self._residencies:
            residency = reference()
            if residency is not None and residency is not own and residency.connected:
                leaving = [u.name for u in residency.units() if u.resident and u.demotable]
                released += residency.demote(leaving)
        return tuple(released)
