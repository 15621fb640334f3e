"""Whether ranks of a host bring blocks in parts: with equal plans, where measured rates say so."""

from dataclasses import replace

from ...plan import SwapPlan
from ...plan.timing.shared_link import RankRates, brought_alone, brought_in_parts
from ...ranks.companions import make_companions
from ...ranks.group import Ranks
from ...ranks.rates import measure
from ...ranks.shared_weights import SharedWeights
from ..assembly.brought_parts import BroughtParts
from ..assembly.parts import Parts
from ..plan_inputs.basis import Basis

NOT_EQUAL = (
    "each rank copies all of every streamed block: the plans of the ranks of this host differ "
    "(give all the same args, and as much free memory)"
)
NO_COLLECTIVES = (
    "each rank copies all of every streamed block: torch has no collectives for {device}, or "
    "another kind of device is on another rank"
)


def agreed_basis(ranks: Ranks, basis: Basis) -> Basis:
    """What a plan is made of, with as much free memory as the rank that has least of it."""
    told = ranks.agree("plan", basis.facts.device_free_bytes)
    known = [free for free in told.values() if free is not None]
    free = min(known) if len(known) == len(told) else None
    ranks_here = 1 if basis.facts.on_host else len(ranks.neighbours)
    return replace(basis, facts=replace(basis.facts, device_free_bytes=free, ranks=ranks_here))


def in_parts(parts: Parts, ranks: Ranks, weights: SharedWeights, basis: Basis) -> Parts:
    """`parts` with the plan as it will be carried out. Every rank of this host must call it."""
    if len(ranks.neighbours) < 2:
        return parts
    ranks = ranks.of_this_host()  # what is decided from here on may differ between hosts
    told = ranks.agree("compare plans", _moving(parts.plan))
    here = list(told.values())
    if any(slots == 0 for _, slots, *_ in here):
        return parts  # nothing moves, on the CPU or because all of it stays
    if here[1:] != here[:-1]:
        return _alone(parts, NOT_EQUAL)
    if parts.sharing.rates is None:
        parts.sharing.rates = _begun(parts, ranks, weights)
    rates, gathers = parts.sharing.rates, parts.pool.gathers
    if rates is None:
        return _alone(parts, NO_COLLECTIVES.format(device=parts.device.torch_device.type))
    if gathers is None:
        return replace(parts, plan=brought_alone(parts.plan, rates))
    speeds = None if basis.foresight is None else basis.foresight.speeds
    plan = brought_in_parts(parts.plan, rates, speeds)
    return replace(parts, plan=plan, brought=BroughtParts(gathers, gathers.number()))


def _begun(parts: Parts, ranks: Ranks, weights: SharedWeights) -> RankRates | None:
    """What was measured, once for all models of a pool; where it pays, the pool's gathers begin."""
    companions = make_companions(ranks, parts.device.torch_device)
    if companions is None:
        return None
    try:
        target = parts.pool.slots[0].memory
        rates = measure(parts.device, ranks, companions, weights.memory, target)
    except BaseException:
        companions.close()
        raise
    if rates.pays:
        companions.tell = parts.pool.sentences.append
        parts.pool.fill_with(companions)
    else:
        companions.close()
    return rates


def _alone(parts: Parts, sentence: str) -> Parts:
    plan = parts.plan
    return replace(parts, plan=replace(plan, sentences=(*plan.sentences, sentence)))


def _moving(plan: SwapPlan) -> tuple[object, int, int, int]:
    """What must be the same for the ranks to ask for the same units in the same order."""
    return plan.units, plan.slots, plan.slot_bytes, plan.prefetch
