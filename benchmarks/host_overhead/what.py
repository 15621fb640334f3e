"""Owns what the overhead benchmark runs and what its result is: a model's size, a target, times."""

from dataclasses import dataclass, field

BLOCKS = 40
TENSORS = 27
FORWARDS = 400
TARGET_MICROSECONDS = 100.0


@dataclass(frozen=True, slots=True)
class Overhead:
    """Microseconds of host time per block; `sections` are shares of them by the stopwatch.

    `device_calls` are the calls per block that a real accelerator would have been given.
    """

    what: str
    median: float
    tenth: float
    ninetieth: float
    sections: dict[str, float] = field(default_factory=dict)
    device_calls: dict[str, float] = field(default_factory=dict)
