"""One plan for models run in turn (Wan 2.2's experts): shared slots and budgets, then split.

Only one of them runs at a time, so they are planned as one long model: slots, staging and budgets
are theirs together, and residents are spread over all of them.

    high   |0 1 2 ... 39|                      one question:  |0/0 ... 0/39 1/0 ... 1/39|
    low                 |0 1 2 ... 39|         one answer, parted again where a model ends
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from ..layout.slab import align_up
from ..selection import Selection
from ..units import format_bytes
from .choice.plan_bytes import measured, whole_bytes
from .inputs.foresight import Foresight, Speeds
from .inputs.pieces import joined
from .inputs.unit_sizes import Facts
from .sentences.placement import summary
from .swap_plan import PlannedUnit, SwapPlan
from .timing.forward_time import timing_of


def joined_facts(models: Sequence[Facts]) -> Facts:
    """The models as one, units named `number/name`. Machine and free memory are the first's."""
    first = models[0]
    return replace(
        first,
        label=_joined_label([facts.label for facts in models]),
        units=tuple(
            replace(unit, name=_joined_name(number, unit.name))
            for number, facts in enumerate(models)
            for unit in facts.units
        ),
        # Each rest is an allocation of its own.
        rest_bytes=sum(align_up(facts.rest_bytes, first.granularity) for facts in models),
        notes=(),  # each model's own plan repeats its own
    )


def joined_selection(selections: Sequence[Selection]) -> Selection:
    """The candidates of all models; what is said of each is left to its own plan."""
    return Selection(
        candidates=tuple(
            _joined_name(number, name)
            for number, selection in enumerate(selections)
            for name in selection.candidates
        ),
        exact=all(selection.exact for selection in selections),
        sentences=(),
    )


def joined_foresight(models: Sequence[Foresight | None]) -> Foresight | None:
    """The larger activations count, for one model runs at a time; times add up.

    None where the workload of a model is not known.
    """
    known = [foresight for foresight in models if foresight is not None]
    if len(known) < len(models):
        return None
    most = max(known, key=lambda foresight: foresight.reserve_bytes)
    most = replace(most, in_pieces=joined([foresight.in_pieces for foresight in known]))
    speeds = [foresight.speeds for foresight in known if foresight.speeds is not None]
    return replace(most, speeds=_joined_speeds(speeds) if len(speeds) == len(known) else None)


def parted_plans(
    plan: SwapPlan,
    models: Sequence[Facts],
    selections: Sequence[Selection],
    foresights: Sequence[Foresight | None],
) -> tuple[SwapPlan, ...]:
    """Each model's own plan out of the joint one.

    Slots, staging and decode buffer are shared: every plan's `device_bytes` counts them, and they
    are there once (`together_bytes`).
    """
    ends = list(accumulate(len(facts.units) for facts in models))
    plans = []
    for number, facts in enumerate(models):
        units = plan.units[ends[number] - len(facts.units) : ends[number]]
        own = _own_plan(plan, facts, units)
        foresight = foresights[number]
        if foresight is not None and foresight.speeds is not None:
            timing = timing_of(own, foresight.speeds, on_host=facts.on_host)
            own = replace(own, timing=timing)
        sentences = (
            summary(facts, own),
            _shared_sentence(plan, models),
            *facts.notes,
            *selections[number].sentences,
            *(f"{len(models)} models together: {said}" for said in plan.sentences),
        )
        plans.append(replace(own, sentences=sentences))
    return tuple(plans)


def together_bytes(plans: Sequence[SwapPlan], granularity: int) -> int:
    """Device bytes of plans that share slots and decode buffer: those are counted once."""
    if not plans:
        return 0
    own = [_weight_bytes(plan, granularity) for plan in plans]
    return sum(own) + max(
        plan.device_bytes - weights for plan, weights in zip(plans, own, strict=True)
    )


def _weight_bytes(plan: SwapPlan, granularity: int) -> int:
    """What stays on the device of the model itself: residents and the rest, each rounded."""
    residents = [unit.slab_bytes for unit in plan.units if unit.tier == "resident"]
    return sum(align_up(size, granularity) for size in (plan.rest_bytes, *residents))


def _own_plan(plan: SwapPlan, facts: Facts, units: Sequence[PlannedUnit]) -> SwapPlan:
    own = tuple(replace(unit, name=unit.name.partition("/")[2]) for unit in units)
    held, held_by_all = _held(own), _held(plan.units)
    parted = replace(
        plan,
        units=own,
        rest_bytes=facts.rest_bytes,
        # What may be pinned is divided as the bytes are.
        pinned_bytes=plan.pinned_bytes * held // held_by_all if held_by_all else 0,
        timing=None,
    )
    parted = measured(facts, parted)
    if facts.on_host and not facts.from_checkpoint:  # blocks are used where they lie
        return replace(parted, device_bytes=whole_bytes(facts))
    return parted


def _held(units: Sequence[PlannedUnit]) -> int:
    """Bytes that rest in RAM."""
    return sum(unit.slab_bytes for unit in units if unit.tier == "ram")


def _joined_speeds(models: Sequence[Speeds]) -> Speeds:
    seconds: Mapping[str, float] = {
        _joined_name(number, name): seconds
        for number, speeds in enumerate(models)
        for name, seconds in speeds.compute_seconds.items()
    }
    rest = sum(speeds.rest_seconds for speeds in models)
    return replace(models[0], compute_seconds=seconds, rest_seconds=rest)


def _shared_sentence(plan: SwapPlan, models: Sequence[Facts]) -> str:
    count = len(models)
    if not plan.slots:
        return f"{count} models were planned together: their budgets are one"
    slots = f"{plan.slots} slot{'s' * (plan.slots > 1)} of {format_bytes(plan.slot_bytes)}"
    return (
        f"{count} models share {slots}, which are there once and counted in the plan of each: one "
        "model runs at a time"
    )


def _joined_label(labels: Sequence[str]) -> str:
    if len(set(labels)) == 1:
        return f"{len(labels)} x {labels[0]}"
    return f"{', '.join(labels[:-1])} and {labels[-1]}"


def _joined_name(number: int, name: str) -> str:
    return f"{number}/{name}"
