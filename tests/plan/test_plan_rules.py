"""Each rule of the planner, one at a time, on models small enough to reckon by hand.

The rest takes 60 bytes of the device, a block 100.
"""

import pytest
from plan_samples import CPU, FILE, block, blocks, layout_of, machine, planned

from blockswap.errors import PlanError
from blockswap.plan import Foresight, UnitFacts, make_plan
from blockswap.selection import BlockSwapArgs, select


def said(plan):
    return "\n".join(plan.sentences)


# --- a loaded model on the CPU


def test_a_loaded_model_on_the_cpu_is_used_where_it_lies():
    plan = planned(machine(blocks(4), **CPU), blocks="1,2")
    assert plan.block_map() == "RmmR"
    assert plan.device_bytes == 460
    assert (plan.slots, plan.slot_bytes, plan.prefetch, plan.pinned_bytes) == (0, 0, 0, 0)
    assert (plan.copied_bytes_per_forward, plan.read_bytes_per_forward) == (0, 0)
    assert "used where they lie" in said(plan)


@pytest.mark.parametrize("wish", [{}, {"vram_budget": 460}])
def test_a_loaded_model_on_the_cpu_streams_nothing_unless_asked(wish):
    assert planned(machine(blocks(4), **CPU), **wish).block_map() == "RRRR"


def test_a_loaded_model_on_the_cpu_cannot_take_less_than_it_takes():
    with pytest.raises(PlanError, match=r"at least 460 B .* open it from its checkpoint"):
        planned(machine(blocks(4), **CPU), vram_budget=459)


def test_a_ram_budget_below_a_loaded_model_is_said():
    assert "ram_budget=459 B cannot be kept" in said(
        planned(machine(blocks(4), **CPU), ram_budget=459)
    )
    assert "cannot be kept" not in said(planned(machine(blocks(4), **CPU), ram_budget=460))


# --- a checkpoint on the CPU


def test_a_checkpoint_on_the_cpu_is_streamed_from_the_file_into_slots():
    plan = planned(machine(blocks(6), **CPU, **FILE))
    assert plan.block_map() == "dddddd"
    assert (plan.slots, plan.slot_bytes, plan.device_bytes) == (3, 100, 360)
    assert (plan.staging_buffers, plan.pinned_bytes, plan.copied_bytes_per_forward) == (0, 0, 0)
    assert plan.read_bytes_per_forward == 600


def test_on_the_cpu_the_smaller_of_both_budgets_counts():
    facts = machine(blocks(6), **CPU, **FILE)
    small = planned(facts, vram_budget=460)
    assert small.block_map().count("R") == 1
    assert planned(facts, vram_budget=460, ram_budget=9999).units == small.units
    plan = planned(facts, vram_budget=9999, ram_budget=460)
    assert plan.units == small.units
    assert "ram_budget=460 B is binding" in said(plan)
    assert "speak of the same memory" in said(plan)


def test_on_the_cpu_a_ram_budget_makes_a_list_candidates():
    plan = planned(machine(blocks(6), **CPU, **FILE), blocks="1-5", ram_budget=9999)
    assert plan.streamed == ()


def test_on_the_cpu_a_ram_budget_of_zero_keeps_no_streamed_block():
    plan = planned(machine(blocks(6), **CPU, **FILE), blocks="1-5", ram_budget=0)
    assert plan.block_map() == "Rddddd"


# --- a loaded model on an accelerator


def test_a_loaded_model_is_streamed_from_pinned_ram():
    plan = planned(machine(blocks(8)), blocks_to_swap=4)
    assert plan.block_map() == "RmRmRmRm"
    assert (plan.slots, plan.prefetch, plan.device_bytes) == (3, 2, 760)
    assert (plan.pinned_bytes, plan.staging_buffers) == (400, 0)
    assert (plan.copied_bytes_per_forward, plan.read_bytes_per_forward) == (400, 0)


def test_a_ram_budget_limits_what_is_pinned_and_says_the_remainder():
    plan = planned(machine(blocks(8)), blocks_to_swap=4, ram_budget=150)
    assert plan.pinned_bytes == 150
    assert plan.block_map() == "RmRmRmRm"
    assert "the remaining 250 B goes through 2 staging buffers of 100 B" in said(plan)
    assert (plan.staging_buffers, plan.staging_bytes) == (2, 100)


def test_without_pinned_memory_the_summary_does_not_speak_of_it():
    plan = planned(machine(blocks(8)), blocks_to_swap=4, ram_budget=0)
    assert "streamed from RAM through" in plan.sentences[0]


# --- a checkpoint on an accelerator


@pytest.mark.parametrize("ram", [None, 0])
def test_without_ram_all_streamed_are_read_from_the_file(ram):
    plan = planned(machine(blocks(8), **FILE), blocks_to_swap=8, ram_budget=ram)
    assert plan.block_map() == "dddddddd"
    assert (plan.staging_buffers, plan.staging_bytes, plan.pinned_bytes) == (2, 100, 0)
    assert (plan.copied_bytes_per_forward, plan.read_bytes_per_forward) == (800, 800)


def test_ram_beside_the_staging_buffers_holds_some_of_the_streamed():
    plan = planned(machine(blocks(8), **FILE), blocks_to_swap=8, ram_budget=600)
    assert plan.block_map() == "mdmdmdmd"
    assert (plan.staging_buffers, plan.pinned_bytes) == (2, 400)
    assert (plan.copied_bytes_per_forward, plan.read_bytes_per_forward) == (800, 400)
    assert "holds 4 of 8 streamed" in said(plan)


def test_ram_for_all_streamed_needs_no_staging():
    plan = planned(machine(blocks(8), **FILE), blocks_to_swap=8, ram_budget=800)
    assert plan.block_map() == "mmmmmmmm"
    assert (plan.staging_buffers, plan.read_bytes_per_forward) == (0, 0)
    assert plan.sentences[-1] == "ram_budget=800 B holds 8 of 8 streamed (800 B)"


def test_a_single_block_on_disk_needs_one_staging_buffer():
    units = (*blocks(7), block(7, 100, ram_slab_bytes=300))
    plan = planned(machine(units, **FILE), blocks_to_swap=8, ram_budget=800)
    assert plan.block_map() == "mmmmmmmd"
    assert (plan.staging_buffers, plan.pinned_bytes) == (1, 700)


def test_ram_that_holds_a_block_but_not_the_staging_is_left():
    plan = planned(machine(blocks(8), **FILE), blocks_to_swap=8, ram_budget=250)
    assert plan.block_map() == "dddddddd"
    assert "ram_budget=250 B has no room for a block beside 2 staging buffers" in said(plan)


def test_without_prefetch_one_staging_buffer_is_enough():
    plan = planned(machine(blocks(8), **FILE), blocks_to_swap=8, prefetch_blocks=0)
    assert (plan.slots, plan.staging_buffers) == (1, 1)


def test_more_host_memory_than_is_free_is_said():
    facts = machine(blocks(8), host_free_bytes=500, **FILE)
    plan = planned(facts, blocks_to_swap=8, ram_budget=600)
    assert "the plan takes 600 B of host memory, 500 B is free" in said(plan)
    assert "of host memory" not in said(planned(facts, blocks_to_swap=8))


def test_what_is_decoded_from_the_file_needs_a_buffer_and_what_rests_in_ram_does_not():
    units = blocks(8, 200, disk_slab_bytes=100, decode_bytes=200)
    disk = planned(machine(units, **FILE), blocks_to_swap=8)
    assert (disk.decode_bytes, disk.slot_bytes, disk.device_bytes) == (200, 100, 560)
    ram = planned(machine(units, **FILE), blocks_to_swap=8, ram_budget=1600)
    assert (ram.decode_bytes, ram.slot_bytes, ram.device_bytes) == (0, 200, 660)


def test_a_unit_without_bytes_in_the_file_is_refused():
    with pytest.raises(PlanError, match=r"no bytes for blocks\.1: load the model first"):
        machine((block(0), block(1, disk_slab_bytes=None)), **FILE)


# --- a VRAM budget


@pytest.mark.parametrize(
    ("budget", "slots", "residents"),
    [(160, 1, 0), (259, 1, 0), (260, 2, 0), (360, 3, 0), (459, 3, 0), (460, 3, 1), (759, 3, 3)],
)
def test_a_budget_goes_to_slots_first_and_then_to_residents(budget, slots, residents):
    plan = planned(machine(blocks(8)), vram_budget=budget)
    assert (plan.slots, len(plan.residents)) == (slots, residents)


def test_a_budget_for_everything_streams_nothing_and_says_so():
    plan = planned(machine(blocks(8)), vram_budget=860)
    assert plan.block_map() == "RRRRRRRR"
    assert (plan.slots, plan.pinned_bytes) == (0, 0)
    assert "vram_budget=860 B holds the whole model (860 B)" in said(plan)


def test_a_binding_budget_says_what_one_more_resident_needs():
    plan = planned(machine(blocks(8)), vram_budget=475)
    assert "vram_budget=475 B is binding: 460 B is used, one more resident needs 85 B more" in said(
        plan
    )


def test_a_budget_says_that_activations_come_on_top():
    plan = planned(machine(blocks(8)), vram_budget=475)
    assert "vram_budget=475 B covers weights and slots: activations come on top of it" in said(plan)
    assert plan.reserve_bytes == 0


def test_fewer_slots_than_wanted_are_said():
    plan = planned(machine(blocks(8)), vram_budget=300)
    assert "there is no room for 3 slots: 2 must do" in said(plan)


def test_a_budget_too_small_says_the_least_that_would_do():
    with pytest.raises(PlanError) as caught:
        planned(machine(blocks(8)), vram_budget=159)
    assert str(caught.value) == (
        "vram_budget=159 B was asked, toy needs at least 160 B on cuda:0 with 8 of 8 "
        "units streamed through 1 slot: give it that much"
    )


def test_a_budget_too_small_with_nothing_to_stream_says_so():
    with pytest.raises(PlanError, match="with nothing streamed"):
        planned(machine(blocks(8)), vram_budget=159, blocks_to_swap=0)


def test_candidates_that_are_no_blocks_count_as_residents_too():
    units = (UnitFacts("text", "text_embedder", 30, 30), *blocks(8))
    plan = planned(machine(units), vram_budget=390, offload_txt_emb=True)
    assert plan.residents == ("text",)


def test_where_sizes_differ_as_many_as_possible_stay():
    units = (block(0, 100), block(1, 40), block(2, 100), block(3, 40), block(4, 100), block(5, 100))
    plan = planned(machine(units), vram_budget=440)
    assert plan.block_map() == "mRmRmm"


@pytest.mark.parametrize("form", [{"decode_bytes": 500}, {"disk_slab_bytes": 500}])
def test_the_unit_with_the_largest_buffer_stays_beside_the_cheapest(form):
    units = (block(0, 120, **({"disk_slab_bytes": 100} | form)), block(1, 10), *blocks(6)[2:])
    plan = planned(machine(units, **FILE), vram_budget=490)
    assert plan.block_map() == "RRdddd"


def test_slots_of_a_plan_with_both_tiers_hold_the_larger_form():
    units = blocks(8, 100, disk_slab_bytes=50)
    plan = planned(machine(units, **FILE), vram_budget=300, ram_budget=500)
    assert set(plan.block_map()) == {"m", "d"}
    assert (plan.slots, plan.slot_bytes, plan.device_bytes) == (2, 100, 260)


def test_a_single_large_unit_stays_where_that_takes_less_than_its_slot():
    units = (block(0, 100, ram_slab_bytes=1000), *blocks(8)[1:])
    with pytest.raises(PlanError, match=r"at least 260 B .* 7 of 8 units"):
        planned(machine(units), vram_budget=100)


def test_a_budget_above_what_is_free_is_said():
    plan = planned(machine(blocks(8), device_free_bytes=400), vram_budget=475)
    assert "the plan needs 460 B on cuda:0, 400 B is free: lower the budget to 400 B" in said(plan)


# --- exactly what was asked


def test_a_list_is_streamed_exactly_whatever_is_free():
    plan = planned(machine(blocks(8), device_free_bytes=1), blocks="0,5")
    assert plan.streamed == ("blocks.0", "blocks.5")


def test_what_does_not_fit_says_how_many_more_blocks_would():
    plan = planned(machine(blocks(8), device_free_bytes=560), blocks_to_swap=4)
    assert plan.sentences[-1] == (
        "the plan needs 760 B on cuda:0, 560 B is free: stream 2 more blocks (6 instead of 4)"
    )
    fits = planned(machine(blocks(8), device_free_bytes=560), blocks_to_swap=6)
    assert fits.device_bytes == 560
    assert "is free" not in said(fits)


def test_one_block_more_is_said_in_the_singular():
    plan = planned(machine(blocks(8), device_free_bytes=660), blocks_to_swap=4)
    assert "stream 1 more block (5 instead of 4)" in said(plan)


def foreseen(facts, activation_bytes, **wish):
    """A plan for a clip whose bytes are known and whose seconds are not."""
    args = BlockSwapArgs(**wish)
    foresight = Foresight("a clip", activation_bytes, 10)
    return make_plan(facts, select(args, layout_of(facts)), args, foresight)


def test_activations_count_in_what_does_not_fit():
    plan = foreseen(machine(blocks(8), device_free_bytes=860), 190, blocks_to_swap=4)
    assert (
        "the plan needs 960 B on cuda:0 with 200 B for activations, 860 B is free: "
        "stream 1 more block (5 instead of 4)"
    ) in said(plan)
    fits = foreseen(machine(blocks(8), device_free_bytes=860), 190, blocks_to_swap=5)
    assert fits.device_bytes + 200 == 860
    assert "is free" not in said(fits)
    over = foreseen(machine(blocks(8), device_free_bytes=700), 190, vram_budget=800)
    assert "700 B is free: lower the budget to 700 B" in said(over)


@pytest.mark.parametrize(("activations", "slots"), [(1690, 2), (1790, 1)])
def test_a_small_device_keeps_what_a_known_clip_needs(activations, slots):
    """Half of the device would be less than that."""
    plan = foreseen(machine(blocks(8), device_free_bytes=2000), activations)
    assert plan.slots == slots
    assert plan.device_bytes + activations + 10 <= 2000


def test_what_never_fits_is_not_promised():
    plan = planned(machine(blocks(8), device_free_bytes=100), blocks_to_swap=4)
    assert "streaming more blocks does not suffice" in said(plan)


def test_on_the_cpu_the_hosts_free_memory_counts():
    facts = machine(blocks(8), host_free_bytes=560, **CPU, **FILE)
    assert "760 B on cpu, 560 B is free" in said(planned(facts, blocks_to_swap=4))


# --- words


def test_kinds_are_counted_apart():
    units = (
        UnitFacts("text", "text_embedder", 10, 10),
        *blocks(2),
        UnitFacts("vace_blocks.0", "vace", 100, 100),
    )
    facts = machine(units)
    none = planned(facts, blocks_to_swap=0)
    assert none.sentences[0] == (
        "all 2 blocks, 1 VACE block and 1 embedder stay on cuda:0 (370 B of weights): nothing is "
        "streamed"
    )
    some = planned(facts, blocks="1", vace_blocks_to_swap=1, offload_txt_emb=True)
    assert some.sentences[0].startswith("1 of 2 blocks, the VACE block and the embedder are")
    one = planned(facts, blocks="1")
    assert one.sentences[0] == (
        "1 of 2 blocks is streamed from pinned RAM through 1 slot of 100 B; 1 stays on cuda:0 "
        "(370 B of weights and slots)"
    )


def test_what_selection_said_comes_right_after_the_summary():
    args = BlockSwapArgs(blocks_to_swap=75)
    facts = machine(blocks(8))
    selection = select(args, layout_of(facts))
    plan = make_plan(facts, selection, args)
    assert plan.sentences[1 : 1 + len(selection.sentences)] == selection.sentences
