"""The plan of a model that is opened anew in a pool it shares: blocks stay where they were."""

from dataclasses import replace

from ...errors import PlanError
from ...plan import Facts, SwapPlan, Tier
from ...plan.correction.revised_plan import Buffers, replanned, slab_bytes
from ...stream.pool.pool import PoolSizes
from ...units import format_bytes


def plan_in_pool(
    before: SwapPlan, facts: Facts, sizes: PoolSizes, notes: tuple[str, ...]
) -> SwapPlan:
    """`before` for a model of other `facts`; `notes` are the sentences of before that go.

    Raises PlanError where a unit does not fit what the pool has.
    """
    tiers: dict[str, Tier] = {unit.name: unit.tier for unit in before.units}
    held = 0
    for unit in facts.units:
        tier = tiers[unit.name]
        if tier == "resident":
            continue
        decode = unit.ram_decode_bytes if tier == "ram" else unit.decode_bytes
        nbytes = slab_bytes(facts, unit.name, tier)
        held += nbytes if tier == "ram" else 0
        _refuse_beyond("a slot", unit.name, nbytes, sizes.slot_bytes)
        _refuse_beyond("the decode buffer", unit.name, decode, sizes.decode_bytes)
        if tier == "disk" and sizes.staging_buffers:
            _refuse_beyond("a staging buffer", unit.name, nbytes, sizes.staging_bytes)
    buffers = Buffers(
        slots=before.slots,
        slot_bytes=before.slot_bytes,
        decode_bytes=before.decode_bytes,
        staging_buffers=before.staging_buffers,
        staging_bytes=before.staging_bytes,
    )
    if before.pinned_bytes < sum(u.slab_bytes for u in before.units if u.tier == "ram"):
        held = before.pinned_bytes  # a part of them is not pinned, and that stays so
    kept = tuple(sentence for sentence in before.sentences if sentence not in notes)
    found = replanned(replace(before, sentences=kept), facts, tiers, buffers, held)
    return replace(found, sentences=(*found.sentences, *facts.notes))


def _refuse_beyond(what: str, unit: str, nbytes: int, there: int) -> None:
    if nbytes > there:
        raise PlanError(
            f"{unit} with these LoRAs needs {format_bytes(nbytes)} of {what} that models share, "
            f"which has {format_bytes(there)}: open the models anew with these LoRAs, or give "
            "LoRAs of a lower rank"
        )
