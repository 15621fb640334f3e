"""Whether ranks bring a block in parts: from rates measured while all of them copy at once.

alone      every rank copies all of it:  bytes / link          and reads: bytes N / disk
in parts   it copies 1/N and gathers:    max(bytes / N / link, bytes (N - 1) / N / gather)
                                         and all of them read: bytes / disk
"""

from dataclasses import dataclass, replace
from math import isinf

from ...layout.shares import Shares
from ...units import format_rate
from ..inputs.foresight import Speeds
from ..swap_plan import SwapPlan, Tier
from .forward_time import timing_of

ALIGNMENT = 256  # of parts, as of leaves


@dataclass(frozen=True, slots=True)
class RankRates:
    """Bytes a second of each of `ranks` ranks: over its link, and of what a gather brings it.

    The slowest rank's, for all wait for it. A link of infinity: blocks compute where they are read.
    """

    ranks: int
    link: float
    gather: float

    @property
    def in_parts(self) -> float:
        """Bytes a second of whole blocks that are brought in parts."""
        return min(self.ranks * self.link, self.gather * self.ranks / (self.ranks - 1))

    def pay(self, tier: Tier, disk: float | None) -> bool:
        """Whether blocks that rest in `tier` come faster in parts.

        `disk`: what the ranks read of a file together; where that is not known it is the slowest.
        """
        if tier == "ram":
            return self.in_parts > self.link
        return disk is None or min(self.in_parts, disk) > min(self.link, disk / self.ranks)


def tiers_in_parts(plan: SwapPlan, rates: RankRates, speeds: Speeds | None) -> frozenset[Tier]:
    """Where those of the plan's streamed blocks rest that come faster in parts."""
    disk = None if speeds is None else speeds.disk
    tiers = {unit.tier for unit in plan.units} - {"resident"}
    return frozenset(tier for tier in tiers if rates.pay(tier, disk))


def brought_in_parts(
    plan: SwapPlan, rates: RankRates, tiers: frozenset[Tier], speeds: Speeds | None
) -> SwapPlan:
    """The plan with the blocks of `tiers` brought in parts; its times are those of the rates."""
    timing = plan.timing
    if speeds is not None and timing is not None:
        link = rates.in_parts if speeds.link is not None else None
        timing = timing_of(plan, replace(speeds, link=link), on_host=speeds.link is None)
    moved = {
        unit.name: Shares(unit.slab_bytes, rates.ranks, ALIGNMENT).own_bytes
        if unit.tier in tiers
        else unit.slab_bytes
        for unit in plan.units
        if unit.tier != "resident"
    }
    read = sum(moved[unit.name] for unit in plan.units if unit.tier == "disk")
    verb, whose = "copies", "a streamed block"
    if "disk" in tiers:
        verb, whose = "reads", "a block that stays in the file"
    if len(tiers) > 1:
        verb, whose = "copies, or reads,", "a streamed block"
    sentence = (
        f"each of the {rates.ranks} ranks of this host {verb} its part of {whose} "
        f"and gets the others' from them ({_measured(rates)})"
    )
    return replace(
        plan,
        copied_bytes_per_forward=plan.copied_bytes_per_forward and sum(moved.values()),
        read_bytes_per_forward=plan.read_bytes_per_forward and read,
        timing=timing,
        sentences=(*plan.sentences, sentence),
    )


def brought_alone(plan: SwapPlan, rates: RankRates) -> SwapPlan:
    """The plan as it is, and why."""
    sentence = f"each rank brings all of every streamed block: it is faster ({_measured(rates)})"
    return replace(plan, sentences=(*plan.sentences, sentence))


def _measured(rates: RankRates) -> str:
    link = "" if isinf(rates.link) else f"{format_rate(rates.link)} over a rank's own link, "
    return f"measured with all at once: {link}{format_rate(rates.gather)} between ranks"
