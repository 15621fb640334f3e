"""Whether ranks of a host bring blocks in parts: with equal plans, where measured rates say so."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from ...errors import PlanError
from ...plan import SwapPlan
from ...plan.inputs.foresight import Speeds
from ...plan.timing.shared_link import RankRates, brought_alone, brought_in_parts, tiers_in_parts
from ...ranks.companions import make_companions
from ...ranks.group import Ranks
from ...ranks.rates import measure, slowest
from ..assembly.brought_parts import BroughtParts
from ..assembly.parts import Parts
from ..plan_inputs.basis import Basis

NOT_EQUAL = (
    "each rank brings all of every streamed block: the plans of the ranks of this host differ "
    "(give all the same args, and as much free memory)"
)
NO_COLLECTIVES = (
    "each rank brings all of every streamed block: torch has no collectives for {device}, or "
    "another kind of device is on another rank"
)


def agreed_basis(ranks: Ranks, basis: Basis) -> Basis:
    """What a plan is made of, with as much free memory as the rank that has least of it."""
    facts = basis.facts
    told = ranks.agree("plan", (facts.device_free_bytes, facts.host_free_bytes))
    device, host = (_least(free) for free in zip(*told.values(), strict=True))
    in_parts = len(ranks.neighbours) if facts.from_checkpoint or not facts.on_host else 1
    facts = replace(facts, device_free_bytes=device, host_free_bytes=host, ranks=in_parts)
    return replace(basis, facts=facts)


def _least(free: Sequence[int | None]) -> int | None:
    known = [nbytes for nbytes in free if nbytes is not None]
    return min(known) if len(known) == len(free) else None


def refuse_other_plans(ranks: Ranks, plan: SwapPlan) -> None:
    """Raises PlanError where ranks of this host, who read one file together, have other plans.

    Every rank must call it.
    """
    own = {unit.name: unit.tier for unit in plan.units} | {"slots": str(plan.slots)}
    own |= {"the kind of device": torch.device(plan.device).type}
    ranks = ranks.of_this_host()
    told, first = ranks.agree("compare plans of one file", own), ranks.ranks[0]
    with ranks.together("compare plans of one file"):
        for rank, (name, other, one) in _differences(told, first):
            raise PlanError(
                f"{name} is {other} in the plan of rank {rank} and {one} in that of rank {first}, "
                "and where blocks stay in the file the ranks of a host read it together: give all "
                "of them the same args"
            )


def _differences(
    told: Mapping[int, Mapping[str, str]], first: int
) -> Iterator[tuple[int, tuple[str, str, str]]]:
    for rank, plan in told.items():
        for name in (*told[first], *(name for name in plan if name not in told[first])):
            one, other = told[first].get(name, "missing"), plan.get(name, "missing")
            if one != other:
                yield rank, (name, other, one)


def in_parts(parts: Parts, ranks: Ranks, memory: torch.Tensor | None, basis: Basis) -> Parts:
    """`parts` with the plan as it will be carried out. Every rank of this host must call it.

    `memory`: where blocks are copied from; None: from staging, if anywhere.
    """
    if len(ranks.neighbours) < 2:
        return parts
    ranks = ranks.of_this_host()  # what is decided from here on may differ between hosts
    speeds = None if basis.foresight is None else basis.foresight.speeds
    told = ranks.agree("compare plans", _moving(parts.plan, speeds))
    here = list(told.values())
    if parts.plan.slots == 0:
        return parts  # nothing moves, on the CPU or because all of it stays
    if here[1:] != here[:-1]:
        return _alone(parts, NOT_EQUAL)
    if parts.sharing.rates is None:
        parts.sharing.rates = _begun(parts, ranks, memory, speeds)
    rates, gathers = parts.sharing.rates, parts.pool.gathers
    if rates is None:
        return _alone(parts, NO_COLLECTIVES.format(device=parts.device.torch_device.type))
    tiers = tiers_in_parts(parts.plan, rates, speeds)
    if gathers is None or not tiers:
        return replace(parts, plan=brought_alone(parts.plan, rates))
    plan = brought_in_parts(parts.plan, rates, tiers, speeds)
    return replace(parts, plan=plan, brought=BroughtParts(gathers, gathers.number(), tiers))


def _begun(
    parts: Parts, ranks: Ranks, memory: torch.Tensor | None, speeds: Speeds | None
) -> RankRates | None:
    """What was measured, once for all models of a pool; where it pays, the pool's gathers begin."""
    most = parts.pool.slots[0].memory.numel()
    companions = make_companions(ranks, parts.device.torch_device, most)
    if companions is None:
        return None
    try:
        target = parts.pool.slots[0].memory
        if memory is None and parts.pool.staging:
            memory = parts.pool.staging[0].chunks[0]
        rates = slowest(measure(parts.device, ranks, companions, memory, target))
    except BaseException:
        companions.close()
        raise
    if tiers_in_parts(parts.plan, rates, speeds):
        companions.tell = parts.pool.sentences.append
        parts.pool.fill_with(companions)
    else:
        companions.close()
    return rates


def _alone(parts: Parts, sentence: str) -> Parts:
    plan = parts.plan
    return replace(parts, plan=replace(plan, sentences=(*plan.sentences, sentence)))


def _moving(plan: SwapPlan, speeds: Speeds | None) -> tuple[object, int, int, int, float | None]:
    """What must be the same for the ranks to ask for the same units in the same order."""
    disk = None if speeds is None else speeds.disk  # which says what comes in parts
    return plan.units, plan.slots, plan.slot_bytes, plan.prefetch, disk
