"""The fastest plan that fits: against brute force over every resident set, and over budgets."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_samples import block, blocks, machine

from blockswap.errors import PlanError
from blockswap.plan import Facts, Foresight, Speeds, make_plan
from blockswap.plan.choice.budgets import question_of
from blockswap.plan.choice.options import option_for
from blockswap.plan.choice.plan_bytes import build_plan
from blockswap.plan.timing.forward_time import timing_of
from blockswap.selection import BlockSwapArgs, Selection

SIZES = st.sampled_from([100, 250])
SECONDS = st.sampled_from([0.0, 0.5, 1.0, 1.1, 3.0])
RATES = st.sampled_from([50.0, 90.0, 100.0, 110.0, 250.0])


@st.composite
def cases(draw, most=6):
    """A toy model of up to `most` blocks, alike or not, with speeds near each other."""
    count, alike = draw(st.integers(1, most)), draw(st.booleans())
    sizes = (
        [draw(SIZES)] * count if alike else draw(st.lists(SIZES, min_size=count, max_size=count))
    )
    seconds = (
        [draw(SECONDS)] * count
        if alike
        else draw(st.lists(SECONDS, min_size=count, max_size=count))
    )
    units = tuple(block(index, size) for index, size in enumerate(sizes))
    facts = machine(units, from_checkpoint=draw(st.booleans()))
    speeds = Speeds(
        compute_seconds={u.name: s for u, s in zip(units, seconds, strict=True)},
        rest_seconds=draw(SECONDS),
        link=draw(RATES),
        disk=draw(RATES),
    )
    return facts, Foresight("a toy clip", draw(st.sampled_from([0, 70])), 5, speeds)


def all_candidates(facts: Facts) -> Selection:
    return Selection(tuple(unit.name for unit in facts.units), exact=False, sentences=())


def brute_force(facts, foresight, args) -> float | None:
    """The least seconds of any resident set and any number of slots within the budget."""
    question = question_of(facts, all_candidates(facts), args, foresight)
    limit = args.vram_budget - foresight.reserve_bytes
    best = None
    for count in range(len(facts.units) + 1):
        for streamed in combinations(facts.units, count):
            option = option_for(facts, question.room, streamed)
            for slots in range(1, max(1, min(question.slots, count)) + 1):
                if option.device_bytes(slots) > limit:
                    continue
                plan = build_plan(question, option, slots)
                seconds = timing_of(plan, foresight.speeds, on_host=False).step_seconds
                best = seconds if best is None else min(best, seconds)
    return best


@settings(deadline=None, max_examples=150)
@given(cases(), st.integers(100, 2200))
def test_brute_force_finds_nothing_faster(case, budget):
    facts, foresight = case
    args = BlockSwapArgs(vram_budget=budget)
    best = brute_force(facts, foresight, args)
    try:
        plan = make_plan(facts, all_candidates(facts), args, foresight)
    except PlanError:
        assert best is None
        return
    assert best is not None
    assert plan.device_bytes + foresight.reserve_bytes <= budget
    assert plan.timing.step_seconds <= best * (1 + 1e-8)


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.25])
def test_brute_force_over_twelve_blocks_finds_nothing_faster(ratio):
    """Where copies take as long as compute, the places of residents matter most."""
    facts = machine(blocks(12))
    speeds = Speeds({unit.name: 1.0 for unit in facts.units}, rest_seconds=0.3, link=100.0 / ratio)
    foresight = Foresight("a toy clip", 0, 0, speeds)
    args = BlockSwapArgs(vram_budget=60 + 700, prefetch_blocks=1)
    plan = make_plan(facts, all_candidates(facts), args, foresight)
    assert 0 < len(plan.residents) < 12
    assert plan.timing.step_seconds <= brute_force(facts, foresight, args) * (1 + 1e-8)


@pytest.mark.parametrize("from_checkpoint", [False, True], ids=["ram", "disk"])
@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.0])
def test_more_budget_is_never_slower_and_never_exceeded(seconds, from_checkpoint):
    """From one slot to all resident, in 64 steps."""
    facts = machine(blocks(20), from_checkpoint=from_checkpoint)
    speeds = Speeds({u.name: seconds for u in facts.units}, 0.25, link=100.0, disk=80.0)
    foresight = Foresight("a toy clip", 130, 7, speeds)
    least, most = 60 + 100 + 137, 60 + 20 * 100 + 137
    before = None
    for step in range(65):
        args = BlockSwapArgs(vram_budget=least + (most - least) * step // 64)
        plan = make_plan(facts, all_candidates(facts), args, foresight)
        assert plan.peak_bytes + foresight.margin_bytes <= args.vram_budget
        now = plan.timing.step_seconds
        assert before is None or now <= before * (1 + 1e-8)
        before = now
    assert plan.streamed == ()


def test_an_unequal_model_with_many_blocks_is_planned_by_its_even_sets():
    """Thirteen blocks are more than are tried in every combination."""
    units = tuple(block(index, 250 if index % 4 == 1 else 100) for index in range(13))
    facts = machine(units)
    speeds = Speeds({u.name: 1.0 + 0.1 * i for i, u in enumerate(units)}, link=120.0)
    foresight = Foresight("a toy clip", 0, 0, speeds)
    before = None
    for budget in range(320, 2200, 60):
        args = BlockSwapArgs(vram_budget=budget)
        plan = make_plan(facts, all_candidates(facts), args, foresight)
        assert plan.device_bytes <= budget
        assert before is None or plan.timing.step_seconds <= before * (1 + 1e-8)
        before = plan.timing.step_seconds


def test_slots_that_were_asked_for_are_kept_where_they_fit():
    facts = machine(blocks(6))
    speeds = Speeds({unit.name: 1.0 for unit in facts.units}, link=100.0)
    foresight = Foresight("a toy clip", 0, 0, speeds)
    for ahead in (0, 1, 2, 3):
        args = BlockSwapArgs(vram_budget=60 + 500, prefetch_blocks=ahead)
        plan = make_plan(facts, all_candidates(facts), args, foresight)
        assert plan.slots == ahead + 1
