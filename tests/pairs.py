"""Pairwise choice: few combinations of many axes, in which every two values still meet."""

import itertools
from collections.abc import Sequence
from typing import Any


def pairwise(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Combinations in which every pair of values of two axes occurs at least once (greedy)."""
    names = list(axes)

    def pairs(row: Sequence[Any]) -> set[tuple[int, Any, int, Any]]:
        return {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(row)), 2)}

    rows = list(itertools.product(*axes.values()))
    left = set().union(*(pairs(row) for row in rows))
    chosen = []
    while left:
        best = max(rows, key=lambda row: len(pairs(row) & left))
        left -= pairs(best)
        chosen.append(dict(zip(names, best, strict=True)))
    return chosen
