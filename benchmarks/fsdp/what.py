"""Owns the cases of the comparison with FSDP2, and what a row of its table is."""

from dataclasses import asdict, dataclass

RANKS = (2, 4)
SCHEDULES = ("fsdp", "ours")


@dataclass(frozen=True, slots=True)
class Row:
    """One schedule with so many ranks. Bytes: of a forward and rank, and of all ranks' memory.

    `gathered` is what other ranks bring, `held` how much the proportional bytes of all processes
    have grown.
    """

    schedule: str
    ranks: int
    weights: int
    gathered: int
    held: int
    equal: bool

    def as_json(self) -> dict[str, object]:
        return asdict(self)
