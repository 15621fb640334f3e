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
_TIERS: tuple[Tier, ...] = ("ram", "disk")


@dataclass(frozen=True, slots=True)
class RankRates:
    """Bytes a second of each of `ranks` ranks: over its link, and of what a gather brings it.

    The slowest rank's, for all wait for it. A link of infinity: blocks compute where they are read.
    """

    ranks: int
    link: float
    gather: float
    source: str = "measured with all at once"

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
    return frozenset(
        tier
        for tier in _TIERS
        if any(unit.tier == tier for unit in plan.units) and rates.pay(tier, disk)
    )


def shared_speeds(speeds: Speeds, rates: RankRates) -> Speeds:
    """How fast whole blocks come to each of several ranks, the better way."""
    disk, link = speeds.disk, speeds.link
    in_parts = any(rates.pay(tier, disk) for tier in _TIERS)
    if link is not None:
        link = rates.in_parts if in_parts else rates.link
    if disk is not None:
        disk = min(disk, rates.in_parts) if rates.pay("disk", disk) else disk / rates.ranks
    return replace(speeds, link=link, disk=disk)


def brought_in_parts(
    plan: SwapPlan, rates: RankRates, tiers: frozenset[Tier], speeds: Speeds | None
) -> SwapPlan:
    """The plan with the blocks of `tiers` brought in parts; its times are those of the rates.

    `speeds`: those of one rank by itself, where the plan's times are made of them.
    """
    timing = plan.timing
    if speeds is not None and timing is not None:
        on_host = speeds.link is None
        timing = timing_of(plan, shared_speeds(speeds, rates), on_host=on_host)
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


def brought_best(plan: SwapPlan, rates: RankRates, speeds: Speeds | None) -> SwapPlan:
    """A plan whose times are those of `shared_speeds`, and what the ranks do; `speeds`: of one."""
    if not plan.slots:
        return plan
    tiers = tiers_in_parts(plan, rates, speeds)
    return brought_in_parts(plan, rates, tiers, None) if tiers else brought_alone(plan, rates)


def brought_alone(plan: SwapPlan, rates: RankRates) -> SwapPlan:
    """The plan as it is, and why."""
    sentence = f"each rank brings all of every streamed block: it is faster ({_measured(rates)})"
    return replace(plan, sentences=(*plan.sentences, sentence))


def _measured(rates: RankRates) -> str:
    link = "" if isinf(rates.link) else f"{format_rate(rates.link)} over a rank's own link, "
    return f"{rates.source}: {link}{format_rate(rates.gather)} between ranks"
