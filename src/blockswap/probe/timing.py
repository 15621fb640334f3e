"""How a call is timed: device events, median of five rounds, one untimed call ahead."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..report.words import count_of
from ..stream.device import Device
from ..units import format_seconds

ROUNDS = 5
MOST_CALLS = 64


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call, one figure a round of `calls` calls."""

    rounds: tuple[float, ...]
    calls: int

    @property
    def seconds(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """The slowest round over the fastest: 1 on a machine with nothing else to do."""
        return max(self.rounds) / max(min(self.rounds), 1e-12)

    def words(self) -> str:
        """Such as "5 x 12 calls of 1.2 ms to 1.3 ms"."""
        least, most = format_seconds(min(self.rounds)), format_seconds(max(self.rounds))
        if len(self.rounds) == 1:
            return f"one call of {least}"
        spread = least if least == most else f"{least} to {most}"
        return f"{len(self.rounds)} x {count_of(self.calls, 'call')} of {spread}"


def time_once(device: Device, stream: Any, body: Callable[[], None]) -> tuple[float, float]:
    """Device seconds and host seconds of one call, after one that is not timed."""
    body()
    device.synchronize()
    began = time.perf_counter()
    seconds = _round(device, stream, body, 1)
    return seconds, time.perf_counter() - began


def time_calls(
    device: Device, stream: Any, body: Callable[[], None], budget_seconds: float
) -> Timing:
    """Times `body`, which enqueues its work on `stream`, for about `budget_seconds`.

    A call that alone takes longer than a round's share is timed fewer times, at least once.
    """
    once, cost = time_once(device, stream, body)
    cost = max(once, cost)
    rounds = min(ROUNDS, int(budget_seconds / max(cost, 1e-9)))
    if rounds < 2:
        return Timing((once,), 1)
    calls = max(1, min(MOST_CALLS, int(budget_seconds / ROUNDS / max(cost, 1e-9))))
    found = tuple(_round(device, stream, body, calls) for _ in range(rounds))
    return Timing(found, calls)


def _round(device: Device, stream: Any, body: Callable[[], None], calls: int) -> float:
    """Device seconds of one call. On an accelerator one call more goes ahead, untimed: the
    device is then busy when the first timed one is enqueued, and its launch costs nothing."""
    begin, end = device.new_event(timing=True), device.new_event(timing=True)
    if not device.on_host:
        body()
    begin.record(stream)
    for _ in range(calls):
        body()
    end.record(stream)
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def not_measured(name: str, error: RuntimeError) -> str:
    """The sentence about a figure that the device refused: a dtype it lacks, or no memory."""
    lines = str(error).strip().splitlines()
    return f"{name} was not measured: {lines[0] if lines else type(error).__name__}"


def no_time_passed(name: str) -> str:
    """The sentence about a figure whose work took the device no time."""
    return f"{name} was not measured: the device's clock saw no time pass"
