"""Two ways of running the same model, in rounds taken in turn; how the second compares."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from benchmarks.shared.forward import timed

Way = Callable[[], Any]  # the forward to run, made ready


def in_turn(
    ways: tuple[Way, Way],
    inputs: dict[str, Any],
    *,
    rounds: int,
    warm_up: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], bool]:
    """Seconds of each way's forwards, without those that warm up; whether outputs are equal.

    Which way comes first alternates, so that neither is always the one behind the other.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    outputs: list[torch.Tensor] = [torch.empty(0), torch.empty(0)]
    for number in range(warm_up + rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            took, outputs[which] = timed(ways[which](), inputs, clock)
            seconds[which].append(took)
    first, second = (tuple(one[warm_up:]) for one in seconds)
    return (first, second), torch.equal(*outputs)


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' own ratios."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))
