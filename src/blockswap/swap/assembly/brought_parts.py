"""How streamed units are cut for several ranks, and the transfer that brings one's part of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...layout.shares import Shares, within
from ...plan.timing.shared_link import ALIGNMENT
from ...stream.marks import Recorder
from ...stream.pool.buffers import Slot
from ...stream.pool.gathers import Gathers
from ...stream.units.gathered import GatheredTransfer, Gathering
from ...stream.units.transfer import Transfer

Runs = Sequence[tuple[torch.Tensor, int]]  # host memory, and the slab offset that it belongs at


@dataclass(frozen=True)
class BroughtParts:
    """How a swap's units are cut. `number` is the swap's in its pool, the same on every rank."""

    gathers: Gathers
    number: int

    def shares(self, nbytes: int, alignment: int = ALIGNMENT) -> Shares:
        """How a slab of `nbytes` is cut."""
        return Shares(nbytes, self.gathers.companions.parts, alignment)

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
        settle: Callable[[Slot], None] | None = None,
    ) -> Transfer:
        """`own` and the other ranks' parts, or `whole`. `unit`: its name and number in the model.

        `settle`: on the host, when all parts are there. Without it a part comes from memory.
        """
        gathering = Gathering(
            self.number + unit[1], unit[0], shares.part_bytes, settle is not None, settle
        )
        return GatheredTransfer(self.gathers, own, whole, gathering, recorder)
