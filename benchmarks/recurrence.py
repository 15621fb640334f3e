"""What the engine's schedule takes in theory: its rules as a recurrence, without an engine.

    copy j    starts when copy j - 1 has ended and the slot it goes to is free,
              that is when streamed block j - slots has been computed
    block k   starts when block k - 1 has ended and, if it is streamed, its copy has ended

The engine on the virtual clock has to agree with it to the last digits.
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A forward of `blocks` equal blocks, some of them streamed through slots. Times in seconds."""

    blocks: int
    streamed: Collection[int]
    slots: int
    copy_seconds: float
    compute_seconds: float

    def ends(self, forwards: int) -> list[float]:
        """When each of some forwards ends, the first from an empty pipeline."""
        streamed, ends = set(self.streamed), []
        computed: list[float] = []  # the end of each streamed block's compute, over all forwards
        copied = now = 0.0
        for _ in range(forwards):
            for block in range(self.blocks):
                if block in streamed:
                    earlier = len(computed) - self.slots
                    free = computed[earlier] if earlier >= 0 else 0.0
                    copied = max(copied, free) + self.copy_seconds
                    now = max(now, copied) + self.compute_seconds
                    computed.append(now)
                else:
                    now += self.compute_seconds
            ends.append(now)
        return ends

    def step_seconds(self, *, warm: int, measured: int) -> float:
        """Seconds of one forward in the steady state."""
        ends = self.ends(warm + measured)
        return (ends[-1] - ends[warm - 1]) / measured
