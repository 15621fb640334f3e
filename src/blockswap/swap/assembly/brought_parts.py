"""How streamed units are cut for several ranks, and the transfer that brings one's part of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...layout.shares import Shares, Span, side_by_side, within
from ...plan.swap_plan import Tier
from ...plan.timing.shared_link import ALIGNMENT
from ...stream.marks import Recorder
from ...stream.pool.gathers import Gathers
from ...stream.units.gathered import GatheredTransfer, Gathering
from ...stream.units.transfer import Transfer

Runs = Sequence[tuple[torch.Tensor, int]]  # host memory, and the slab offset that it belongs at


@dataclass(frozen=True)
class BroughtParts:
    """How a swap's units are cut. `number` is the swap's in its pool, the same on every rank.

    `tiers`: where those rest that come in parts; the others each rank brings whole.
    """

    gathers: Gathers
    number: int
    tiers: frozenset[Tier] = frozenset(("ram", "disk"))

    def shares(self, nbytes: int) -> Shares:
        """How a slab of `nbytes` is cut."""
        return Shares(nbytes, self.gathers.companions.parts, ALIGNMENT)

    def spans(self, nbytes: int) -> list[Span]:
        """What of a slab of `nbytes` this rank brings."""
        return side_by_side(self.shares(nbytes).own(self.gathers.companions.part))

    def own_runs(self, runs: Runs, shares: Shares) -> list[tuple[torch.Tensor, int]]:
        """What of a unit in host memory this rank brings."""
        spans = shares.own(self.gathers.companions.part)
        return [
            (memory.narrow(0, start - at, size), start)
            for memory, at in runs
            for start, size in within(at, memory.numel(), spans)
        ]

    def transfer(
        self,
        own: Transfer,
        whole: Transfer,
        unit: tuple[str, int],
        shares: Shares,
        recorder: Recorder,
        tier: Tier,
    ) -> Transfer:
        """`own` and the other ranks' parts, or `whole`. `unit`: its name and number in the model.

        `tier`: where it rests.
        """
        name, index = unit
        gathering = Gathering(self.number + index, name, shares.part_bytes, reads=tier == "disk")
        return GatheredTransfer(self.gathers, own, whole, gathering, recorder)
