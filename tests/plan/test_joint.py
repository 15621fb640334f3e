"""Models that are used in turn are planned as one, and the plan is parted again without a rest."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from plan_samples import GIB, block, blocks, layout_of, machine, wan_14b
from test_plan_properties import WISHES, facts

from blockswap.errors import PlanError
from blockswap.layout.slab import align_up
from blockswap.plan import Foresight, Speeds, make_plan
from blockswap.plan.joint_plan import (
    joined_facts,
    joined_foresight,
    joined_selection,
    parted_plans,
    together_bytes,
)
from blockswap.selection import BlockSwapArgs, select


def together(models, foresights=None, **wish):
    """The joint plan and its parts."""
    args = BlockSwapArgs(**wish)
    foresights = foresights or [None] * len(models)
    selections = [select(args, layout_of(one)) for one in models]
    joint = make_plan(
        joined_facts(models), joined_selection(selections), args, joined_foresight(foresights)
    )
    return joint, parted_plans(joint, models, selections, foresights)


@given(st.lists(facts(most=5), min_size=2, max_size=3), WISHES)
def test_parts_add_up_to_the_whole(models, wish):
    first = models[0]
    same = dict(on_host=first.on_host, device=first.device, from_checkpoint=first.from_checkpoint)
    models = [machine(one.units, granularity=first.granularity, **same) for one in models]
    try:
        selections = [select(wish, layout_of(one)) for one in models]
        joint = make_plan(joined_facts(models), joined_selection(selections), wish)
    except PlanError:
        assume(False)
    parts = parted_plans(joint, models, selections, [None] * len(models))
    assert "".join(part.block_map() for part in parts) == joint.block_map()
    for part, one in zip(parts, models, strict=True):
        assert [unit.name for unit in part.units] == [unit.name for unit in one.units]
        assert (part.slots, part.slot_bytes, part.prefetch) == (
            joint.slots,
            joint.slot_bytes,
            joint.prefetch,
        )
        assert (part.staging_buffers, part.staging_bytes, part.decode_bytes) == (
            joint.staging_buffers,
            joint.staging_bytes,
            joint.decode_bytes,
        )
    assert sum(part.pinned_bytes for part in parts) <= joint.pinned_bytes
    if first.on_host and not first.from_checkpoint:
        assert sum(part.device_bytes for part in parts) == joint.device_bytes
        return
    assert together_bytes(parts, first.granularity) == joint.device_bytes
    limit = wish.vram_budget_bytes
    assert limit is None or joint.device_bytes <= limit


def test_two_equal_experts_share_slots_and_halve_the_residents():
    models = [wan_14b(), wan_14b()]
    joint, (high, low) = together(models, vram_budget="16GiB")
    slots = high.slots * align_up(high.slot_bytes, 512)
    assert high.slots == 3
    assert joint.device_bytes == high.device_bytes + low.device_bytes - slots
    assert abs(len(high.residents) - len(low.residents)) <= 1
    alone, _ = together([wan_14b(), wan_14b()], vram_budget="8GiB")
    assert len(joint.residents) > len(alone.residents)
    assert any("2 models share 3 slots" in sentence for sentence in high.sentences)
    assert high.sentences[0].startswith(f"{len(high.streamed)} of 40 blocks")
    assert any(sentence.startswith("2 models together: ") for sentence in low.sentences)


def test_a_count_is_for_each_and_a_ram_budget_for_all():
    models = [wan_14b(from_checkpoint=True)] * 2
    joint, parts = together(models, blocks_to_swap=30, ram_budget="20GiB")
    assert [len(part.streamed) for part in parts] == [30, 30]
    assert joint.pinned_bytes + joint.staging_buffers * joint.staging_bytes <= 20 * GIB
    in_ram = [sum(unit.tier == "ram" for unit in part.units) for part in parts]
    assert abs(in_ram[0] - in_ram[1]) <= 1
    assert sum(in_ram) > 20
    assert [part.pinned_bytes for part in parts] == [
        sum(unit.slab_bytes for unit in part.units if unit.tier == "ram") for part in parts
    ]


def test_what_may_be_pinned_is_divided_as_the_bytes_are():
    models = [machine(blocks(4)), machine(blocks(12))]
    joint, parts = together(models, blocks_to_swap=12, ram_budget=800)
    assert joint.pinned_bytes == 800
    assert [part.pinned_bytes for part in parts] == [200, 600]


def test_the_larger_activations_count_and_each_has_its_own_time():
    models = [machine(blocks(4)), machine(blocks(6))]

    def foresight(count, activation_bytes):
        seconds = {f"blocks.{index}": 2.0 for index in range(count)}
        return Foresight("clip", activation_bytes, speeds=Speeds(seconds, link=100.0))

    foresights = [foresight(4, 500), foresight(6, 300)]
    joint, parts = together(models, foresights, vram_budget=1500)
    assert joint.activation_bytes == 500
    assert joint.device_bytes + 500 <= 1500
    assert [part.timing.compute_seconds for part in parts] == [8.0, 12.0]
    assert joint.timing.compute_seconds == 20.0
    _, parts = together(models, [foresights[0], None], vram_budget=1500)
    assert all(part.activation_bytes is None for part in parts)


def test_a_refusal_names_all_models():
    with pytest.raises(PlanError, match=r"2 x toy needs at least"):
        together([machine(blocks(4))] * 2, vram_budget=100)
    other = machine((block(0),), label="other")
    with pytest.raises(PlanError, match="toy and other needs at least"):
        together([machine(blocks(4)), other], vram_budget=100)


def test_loaded_models_on_the_cpu_lie_where_they_are():
    models = [machine(blocks(4), device="cpu", on_host=True)] * 2
    joint, parts = together(models, blocks_to_swap=2)
    assert [part.device_bytes for part in parts] == [460, 460]
    assert joint.device_bytes == 920
    assert all(part.slots == 0 for part in parts)
    assert any("planned together" in sentence for sentence in parts[0].sentences)


def test_nothing_open_takes_nothing():
    assert together_bytes((), 512) == 0
