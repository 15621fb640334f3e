"""What an automatic plan leaves alone, and what the number of slots means, one rule at a time.

The rest takes 60 bytes of the device, a block 100.
"""

import pytest
from plan_samples import FILE, GIB, blocks, machine, planned

from blockswap.errors import PlanError


def said(plan):
    return "\n".join(plan.sentences)


# --- automatic


def test_automatic_leaves_a_tenth_and_a_quarter_of_a_large_device():
    units = blocks(40, GIB // 2)
    plan = planned(machine(units, device_free_bytes=20 * GIB, granularity=512))
    assert plan.reserve_bytes == 5 * GIB
    assert plan.device_bytes <= 13 * GIB < plan.device_bytes + GIB // 2
    assert "5.0 GiB is kept for activations" in said(plan)


def test_automatic_leaves_at_least_half_a_gibibyte():
    units = blocks(40, GIB // 128)
    plan = planned(machine(units, device_free_bytes=GIB, granularity=512))
    assert plan.reserve_bytes == GIB // 2


def test_automatic_streams_nothing_where_all_fits():
    plan = planned(machine(blocks(8), device_free_bytes=8 * GIB))
    assert plan.streamed == ()


@pytest.mark.parametrize(("free", "slots"), [(160, 1), (519, 1), (520, 2), (720, 3), (9000, 3)])
def test_a_small_device_leaves_half_to_activations_where_it_can(free, slots):
    plan = planned(machine(blocks(8), device_free_bytes=free))
    assert plan.block_map() == "mmmmmmmm"
    assert plan.slots == slots
    assert plan.reserve_bytes == free - plan.device_bytes
    assert "too little for the usual reserve" in said(plan)


def test_a_device_too_small_for_one_block_is_refused():
    with pytest.raises(PlanError, match=r"^cuda:0 has 159 B free, toy needs at least 160 B on"):
        planned(machine(blocks(8), device_free_bytes=159))


def test_a_device_that_does_not_tell_gets_everything_streamed():
    plan = planned(machine(blocks(8), device_free_bytes=None))
    assert plan.block_map() == "mmmmmmmm"
    assert "cuda:0 does not tell its free memory" in said(plan)


# --- slots


@pytest.mark.parametrize(("ahead", "slots"), [(None, 3), (0, 1), (1, 2), (5, 6)])
def test_slots_are_one_more_than_the_blocks_copied_ahead(ahead, slots):
    plan = planned(machine(blocks(8)), blocks_to_swap=8, prefetch_blocks=ahead)
    assert (plan.slots, plan.prefetch) == (slots, slots - 1)


def test_one_slot_says_that_blocks_wait():
    plan = planned(machine(blocks(8)), blocks_to_swap=8, prefetch_blocks=0)
    assert "with 1 slot no copy runs under compute" in said(plan)


def test_without_non_blocking_copies_there_is_one_slot():
    plan = planned(machine(blocks(8)), blocks_to_swap=8, use_non_blocking=False)
    assert plan.slots == 1
    assert "has no effect" not in said(plan)


def test_a_prefetch_that_cannot_be_is_said():
    plan = planned(machine(blocks(8)), blocks_to_swap=8, use_non_blocking=False, prefetch_blocks=2)
    assert plan.slots == 1
    assert "use_non_blocking=False: prefetch_blocks=2 has no effect" in said(plan)


@pytest.mark.parametrize(("count", "words"), [(1, "1 slot stay"), (3, "3 slots stay")])
def test_so_few_that_they_stay_in_their_slots_move_nothing(count, words):
    plan = planned(machine(blocks(8), **FILE), blocks_to_swap=count, prefetch_blocks=7)
    assert plan.slots == count
    assert (plan.copied_bytes_per_forward, plan.read_bytes_per_forward) == (0, 0)
    assert f"through {words} there: nothing moves" in said(plan)
