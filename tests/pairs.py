"""Pairwise choice: few combinations of many axes, in which every two values still meet."""

import itertools
from collections.abc import Sequence
from typing import Any


def pairwise(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Combinations in which every pair of values of two axes occurs at least once (greedy)."""
    numbers = {name: range(len(values)) for name, values in axes.items()}
    places = list(itertools.combinations(range(len(axes)), 2))
    met = {
        row: {(i, row[i], j, row[j]) for i, j in places}
        for row in itertools.product(*numbers.values())
    }
    left = set().union(*met.values())
    chosen = []
    while left:
        best = max(met, key=lambda row: len(met[row] & left))
        left -= met[best]
        values = zip(axes.items(), best, strict=True)
        chosen.append({name: each[number] for (name, each), number in values})
    return chosen
