"""Whether ranks bring a block in parts: from rates measured while all of them copy at once.

alone      every rank copies all of it:  bytes / link
in parts   it copies 1/N and gathers:    max(bytes / N / link, bytes (N - 1) / N / gather)
"""

from dataclasses import dataclass, replace

from ...layout.shares import Shares
from ...units import format_rate
from ..inputs.foresight import Speeds
from ..swap_plan import SwapPlan
from .forward_time import timing_of

ALIGNMENT = 256  # of parts, as of leaves


@dataclass(frozen=True, slots=True)
class RankRates:
    """Bytes a second of each of `ranks` ranks: over its link, and of what a gather brings it.

    The slowest rank's, for all wait for it.
    """

    ranks: int
    link: float
    gather: float

    @property
    def in_parts(self) -> float:
        """Bytes a second of whole blocks that are brought in parts."""
        return min(self.ranks * self.link, self.gather * self.ranks / (self.ranks - 1))

    @property
    def pays(self) -> bool:
        """Whether blocks come faster in parts."""
        return self.in_parts > self.link


def brought_in_parts(plan: SwapPlan, rates: RankRates, speeds: Speeds | None) -> SwapPlan:
    """The plan with its blocks brought in parts; its times are those of the measured rates."""
    timing = plan.timing
    if speeds is not None and timing is not None:
        timing = timing_of(plan, replace(speeds, link=rates.in_parts), on_host=False)
    copied = plan.copied_bytes_per_forward and sum(
        Shares(unit.slab_bytes, rates.ranks, ALIGNMENT).own_bytes
        for unit in plan.units
        if unit.tier != "resident"
    )
    sentence = (
        f"each of the {rates.ranks} ranks of this host copies its part of a streamed block and "
        f"gets the others' from them ({_measured(rates)})"
    )
    return replace(
        plan,
        copied_bytes_per_forward=copied,
        timing=timing,
        sentences=(*plan.sentences, sentence),
    )


def brought_alone(plan: SwapPlan, rates: RankRates) -> SwapPlan:
    """The plan as it is, and why."""
    sentence = f"each rank copies all of every streamed block: it is faster ({_measured(rates)})"
    return replace(plan, sentences=(*plan.sentences, sentence))


def _measured(rates: RankRates) -> str:
    return (
        f"measured with all at once: {format_rate(rates.link)} over a rank's own link, "
        f"{format_rate(rates.gather)} between ranks"
    )
