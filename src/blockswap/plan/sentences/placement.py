"""The plan in one line: how many blocks stream, from where, through which slots; how many stay."""

from collections import Counter
from collections.abc import Sequence

from ...units import format_bytes
from ..inputs.unit_sizes import Facts, UnitFacts
from ..swap_plan import PlannedUnit, SwapPlan


def summary(facts: Facts, plan: SwapPlan) -> str:
    """One line: how many are streamed, from where, through what; how many stay."""
    streamed = [unit for unit in plan.units if unit.tier != "resident"]
    device_bytes = format_bytes(plan.device_bytes)
    if not streamed:
        return (
            f"all {_units(facts, plan.units)} stay on {facts.device} ({device_bytes} of weights): "
            "nothing is streamed"
        )
    totals, counts = _count_kinds(facts, facts.units), _count_kinds(facts, streamed)
    stay = sum(totals[noun] - counts[noun] for noun in counts)
    verb = "is" if len(streamed) == 1 else "are"
    lists = _by_list(facts, streamed)
    who = f"{_joined([_share(noun, counts[noun], totals[noun]) for noun in counts])}{lists} {verb}"
    if not plan.slots:
        return f"{who} used where they lie in RAM ({device_bytes} with all the rest)"
    slots = f"{plan.slots} slot{'s' * (plan.slots > 1)} of {format_bytes(plan.slot_bytes)}"
    return (
        f"{who} streamed from {_source(plan)} through {slots}; {stay or 'none'} "
        f"stay{'s' * (stay == 1)} on {facts.device} ({device_bytes} of weights and slots)"
    )


def _units(facts: Facts, units: Sequence[PlannedUnit]) -> str:
    """The units counted in people's words: 40 blocks, 15 VACE blocks and 1 embedder."""
    counts = _count_kinds(facts, units)
    return _joined([f"{count} {noun}{'s' * (count != 1)}" for noun, count in counts.items()])


def _share(noun: str, count: int, total: int) -> str:
    """One kind against all of it: 26 of 40 blocks, all 40 blocks, the embedder."""
    if total == 1:
        return f"the {noun}"
    return f"all {total} {noun}s" if count == total else f"{count} of {total} {noun}s"


def _by_list(facts: Facts, streamed: Sequence[PlannedUnit]) -> str:
    """Where the blocks are: (8 of 19 transformer_blocks, all 38 single_transformer_blocks).

    Nothing for a model whose one list is called `blocks`.
    """
    blocks = [unit.name for unit in facts.units if unit.kind == "block"]
    totals = Counter(name.rpartition(".")[0] for name in blocks)
    if list(totals) in ([], ["blocks"]):
        return ""
    there = {unit.name for unit in streamed}
    counts = Counter(name.rpartition(".")[0] for name in blocks if name in there)
    parts = [
        f"all {total} {name}" if counts[name] == total else f"{counts[name]} of {total} {name}"
        for name, total in totals.items()
        if counts[name]
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _count_kinds(facts: Facts, units: Sequence[PlannedUnit | UnitFacts]) -> dict[str, int]:
    nouns = {"block": "block", "vace": "VACE block"}
    kinds = {unit.name: nouns.get(unit.kind, "embedder") for unit in facts.units}
    found = [kinds[unit.name] for unit in units]
    return {n: found.count(n) for n in ("block", "VACE block", "embedder") if n in found}


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _source(plan: SwapPlan) -> str:
    tiers = [unit.tier for unit in plan.units]
    ram, disk = tiers.count("ram"), tiers.count("disk")
    if not disk:
        return "pinned RAM" if plan.pinned_bytes else "RAM"
    file = "the checkpoint file"
    return f"pinned RAM ({ram}) and {file} ({disk})" if ram else file
