"""Where streamed units rest (pinned RAM or the file), and how many staging buffers they need.

accelerator, live module   all in RAM; `ram_budget` limits how much of it is pinned, the others
                           are copied through staging buffers
accelerator, checkpoint    in the file; with a `ram_budget`, as many as fit rest in pinned RAM,
                           beside the staging buffers that the others are read through
CPU, checkpoint            in the file, read straight into slots: no staging, nothing pinned
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...layout.slab import staging_chunks
from ..inputs.unit_sizes import Facts, UnitFacts
from ..swap_plan import Tier
from .resident_sets import Costs, kept_sets

RAM: Tier = "ram"
DISK: Tier = "disk"


@dataclass(frozen=True, slots=True)
class HostRoom:
    """What host memory offers to streamed units; `ram_budget_bytes` None means no word of it.

    The budget is the host's: units in RAM rest there once for all `ranks`, and each has staging.
    """

    on_host: bool
    from_checkpoint: bool
    ram_budget_bytes: int | None
    staging_wanted: int
    ranks: int = 1

    @classmethod
    def of(cls, facts: Facts, ram_budget_bytes: int | None, *, copies_ahead: bool) -> "HostRoom":
        staging = 0 if facts.on_host else 2 if copies_ahead else 1
        return cls(facts.on_host, facts.from_checkpoint, ram_budget_bytes, staging, facts.ranks)

    def buffers(self, streamed: Sequence[UnitFacts]) -> list[tuple[int, int]]:
        """Bytes of slot and decode buffer for each of `streamed`, before rounding.

        Where some would rest in RAM and some in the file, the larger of both forms is counted.
        """
        if not self.from_checkpoint or self._holds_all(streamed):
            return [(unit.ram_slab_bytes, unit.ram_decode_bytes) for unit in streamed]
        if self._holds_none(streamed):
            return [(_disk_bytes(unit), unit.decode_bytes) for unit in streamed]
        return [
            (max(_disk_bytes(unit), unit.ram_slab_bytes), unit.decode_bytes) for unit in streamed
        ]

    def tiers(self, streamed: Sequence[UnitFacts]) -> tuple[Tier, ...]:
        """The tier of each streamed unit; those read from the file are spread evenly."""
        if not self.from_checkpoint or self._holds_all(streamed):
            return tuple(RAM for _ in streamed)
        if self._holds_none(streamed):
            return tuple(DISK for _ in streamed)
        costs = [Costs(keep=unit.ram_slab_bytes, slot=_disk_bytes(unit)) for unit in streamed]
        for keep in range(len(streamed) - 1, 0, -1):
            for kept in kept_sets(costs, keep):
                tiers = tuple(RAM if at in kept else DISK for at in range(len(streamed)))
                if self.ram_bytes(streamed, tiers) + self.staging(streamed, tiers).nbytes <= (
                    self.ram_budget_bytes or 0
                ):
                    return tiers
        return tuple(DISK for _ in streamed)

    def ram_bytes(self, streamed: Sequence[UnitFacts], tiers: Sequence[Tier]) -> int:
        """Bytes of the slabs that rest in RAM."""
        pairs = zip(streamed, tiers, strict=True)
        return sum(unit.ram_slab_bytes for unit, tier in pairs if tier == "ram")

    def staging(
        self, streamed: Sequence[UnitFacts], tiers: Sequence[Tier], *, pageable_bytes: int = 0
    ) -> "Staging":
        """The staging buffers that units on disk, or in RAM that is not pinned, come through."""
        pairs = zip(streamed, tiers, strict=True)
        sizes = [_disk_bytes(unit) for unit, tier in pairs if tier == "disk"]
        if pageable_bytes:
            sizes += [unit.ram_slab_bytes for unit in streamed]
        buffers = min(self.staging_wanted, len(sizes))
        return Staging(buffers, sum(staging_chunks(max(sizes))) if buffers else 0, self.ranks)

    def _holds_all(self, streamed: Sequence[UnitFacts]) -> bool:
        if self.on_host or self.ram_budget_bytes is None:
            return False
        return sum(unit.ram_slab_bytes for unit in streamed) <= self.ram_budget_bytes

    def _holds_none(self, streamed: Sequence[UnitFacts]) -> bool:
        if self.on_host or self.ram_budget_bytes is None:
            return True
        return all(unit.ram_slab_bytes > self.ram_budget_bytes for unit in streamed)


@dataclass(frozen=True, slots=True)
class Staging:
    """Pinned buffers between file and device: how many for each of `ranks`, and the bytes of each.

    Two are enough: with a read under way into one while the other is copied, and reads that run
    ahead of the slots, the virtual clock sees every mix of RAM and disk at its bound.
    """

    buffers: int
    buffer_bytes: int
    ranks: int = 1

    @property
    def nbytes(self) -> int:
        return self.buffers * self.buffer_bytes * self.ranks


def _disk_bytes(unit: UnitFacts) -> int:
    return unit.disk_slab_bytes or 0
