"""Which sets of blocks are tried as residents: evenly spread first, then the cheapest to keep.

Among equal units every set of a size costs the same, and the even one is taken. Where sizes
differ, the even sets are tried in all rotations; what the cost allows beyond them is found by
keeping, for each bound on the largest unit let go, the units that cost least to keep. That finds
the largest affordable set exactly, because memory depends on the units let go only through the
largest of them (one slot size and one decode buffer serve all).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from ...selection import spread


@dataclass(frozen=True, slots=True)
class Costs:
    """Bytes that one unit costs: to keep it, and the two buffers it needs when it is let go."""

    keep: int
    slot: int
    decode: int = 0


def kept_sets(costs: Sequence[Costs], keep: int) -> Iterator[frozenset[int]]:
    """Sets of `keep` positions, each once, in order of preference; there is always one."""
    equal = len(set(costs)) <= 1
    even = _even_sets(len(costs), keep, rotations=1 if equal else len(costs))
    seen = set()
    for kept in chain(even, () if equal else _cheapest_sets(costs, keep)):
        if kept not in seen:
            seen.add(kept)
            yield kept


def _even_sets(total: int, keep: int, *, rotations: int) -> Iterator[frozenset[int]]:
    for rotation in range(rotations):
        let_go = {(position + rotation) % total for position in spread(total, total - keep)}
        yield frozenset(range(total)) - let_go


def _cheapest_sets(costs: Sequence[Costs], keep: int) -> Iterator[frozenset[int]]:
    """For each bound on slot and decode buffer, the `keep` units that cost least to keep."""
    positions = range(len(costs))
    for slot in sorted({cost.slot for cost in costs}):
        for decode in sorted({cost.decode for cost in costs}):
            forced = {p for p in positions if costs[p].slot > slot or costs[p].decode > decode}
            if len(forced) > keep:
                continue
            free = [p for p in positions if p not in forced]
            yield frozenset(forced) | _cheapest(costs, free, keep - len(forced))


def _cheapest(costs: Sequence[Costs], free: list[int], keep: int) -> frozenset[int]:
    """The `keep` cheapest of `free`; where the last ones are equal in cost, evenly spread."""
    if keep == 0:
        return frozenset()
    dearest = sorted(costs[p].keep for p in free)[keep - 1]
    below = [p for p in free if costs[p].keep < dearest]
    equal = [p for p in free if costs[p].keep == dearest]
    let_go = {equal[at] for at in spread(len(equal), len(equal) - (keep - len(below)))}
    return frozenset(below) | (frozenset(equal) - let_go)
