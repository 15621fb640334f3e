"""What `inspect` and `plan` say of a quantised file is what opening it does."""

from pathlib import Path
from typing import Any

import pytest
from files import Shelf

from blockswap import BlockSwapArgs
from blockswap.adapters.skeleton import build_skeleton
from blockswap.adapters.stored import match_checkpoint
from blockswap.cli.inspection import inspect_checkpoint
from blockswap.forecast import find_model
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.formats import unpacked
from blockswap.layout.geometry import infer_geometry
from blockswap.plan import Facts, UnitFacts, make_plan
from blockswap.plan.inputs.cards import find_card, machine_of_card
from blockswap.plan.inputs.foresight import speeds_of
from blockswap.plan.inputs.workload import ForwardCost
from blockswap.plan.timing.forward_time import timing_of
from blockswap.selection import select
from blockswap.stream.device import open_device
from blockswap.swap.plan_inputs.model_bytes import facts_of_checkpoint

NAMES = (
    "fp8",
    "fp8-scale_weight",
    "comfy-int8-rotated",
    "comfy-nvfp4",
    "quanto-int8",
    "gguf-mixed",
)


def _facts(path: Path) -> Facts:
    checkpoint = unpacked(open_checkpoint(path))
    model = match_checkpoint(build_skeleton(infer_geometry(checkpoint)), checkpoint, None)
    return facts_of_checkpoint(model, open_device("cpu"))


def _sizes(unit: UnitFacts) -> tuple[Any, ...]:
    return unit.resident_bytes, unit.ram_slab_bytes, unit.decode_bytes, unit.ram_decode_bytes


@pytest.mark.parametrize("name", NAMES)
def test_a_forecast_has_the_bytes_of_the_opened_file(name: str, packed_files: Shelf) -> None:
    path = packed_files.file(name, "vace")
    opened, told = _facts(path), find_model(str(path))
    ours = {unit.name: unit for unit in told.units}
    for unit in opened.units:
        assert unit.name in ours
        if unit.kind in ("block", "vace"):
            assert _sizes(ours[unit.name]) == _sizes(unit)
            assert ours[unit.name].decode_moved_bytes == unit.decode_moved_bytes > 0
    assert told.dtype == "bfloat16"
    assert told.stored != "bfloat16" or name == "gguf-mixed"  # of many kinds, none has most bytes


@pytest.mark.parametrize("name", NAMES)
def test_inspect_names_the_format_and_the_dtype(name: str, packed_files: Shelf) -> None:
    path = packed_files.file(name, "t2v")
    found = inspect_checkpoint(open_checkpoint(path))
    assert found.computes_in == "bfloat16"
    block = next(unit for unit in found.units if unit.name == "blocks.0")
    assert block.dtypes[0] not in ("uint8", "int8")
    assert found.to_dict()["computes_in"] == "bfloat16"
    assert bool(found.notes) == ("scale_weight" in name or name == "quanto-int8")


def test_decoding_takes_its_seconds_of_a_forward(packed_files: Shelf) -> None:
    facts = _facts(packed_files.file("gguf-Q4_K", "t2v"))
    machine = machine_of_card(find_card("RTX 4090"))
    cost = ForwardCost(0, 0, 0, tuple((unit.name, 10**9) for unit in facts.units))
    args = BlockSwapArgs(blocks_to_swap=2, prefetch_blocks=1)
    layout = find_model(str(packed_files.file("gguf-Q4_K", "t2v"))).layout
    plan = make_plan(facts, select(args, layout), args)
    timing = timing_of(plan, _speeds(cost, machine, facts), on_host=False)
    streamed = [u for u in facts.units if u.name in plan.streamed]
    moved = sum(unit.decode_moved_bytes for unit in streamed)
    assert timing.decode_seconds == pytest.approx(moved / machine.memory_rate)
    bare = timing_of(plan, _speeds(cost, machine, None), on_host=False)
    assert bare.decode_seconds == 0
    assert timing.compute_seconds == pytest.approx(bare.compute_seconds + timing.decode_seconds)


def _speeds(cost: ForwardCost, machine: Any, facts: Facts | None) -> Any:
    speeds = speeds_of(cost, machine, "bfloat16", () if facts is None else facts.units)
    assert speeds is not None
    return speeds
