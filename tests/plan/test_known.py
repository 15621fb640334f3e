"""Budgets asked one after the other: the plans of each alone, each choice looked at once."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_samples import block, machine

from blockswap.plan import Foresight, Known, Speeds, make_plan, plan_in_numbers
from blockswap.plan.timing.pipeline import Pipeline, Stage, _Run
from blockswap.selection import BlockSwapArgs, Selection

BUDGETS = range(400, 2600, 70)


def unequal(*, from_checkpoint: bool = False):
    """Large blocks before small ones, as Flux has them; copies bind in some, compute in others."""
    sizes = [250] * 5 + [100] * 10
    units = tuple(block(index, size) for index, size in enumerate(sizes))
    seconds = {u.name: 1.9 if s == 250 else 1.1 for u, s in zip(units, sizes, strict=True)}
    speeds = Speeds(seconds, rest_seconds=0.3, link=100.0, disk=90.0)
    selection = Selection(tuple(seconds), exact=False, sentences=())
    facts = machine(units, from_checkpoint=from_checkpoint)
    return facts, selection, Foresight("a toy clip", 70, 5, speeds)


def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[Pipeline]:
    """Every line whose steady state is walked to from now on."""
    seen: list[Pipeline] = []
    walk = Pipeline.timing
    monkeypatch.setattr(Pipeline, "timing", lambda self: seen.append(self) or walk(self))
    return seen


@pytest.mark.parametrize("from_checkpoint", [False, True], ids=["ram", "disk"])
def test_a_budget_after_others_gets_the_plan_that_it_gets_alone(from_checkpoint):
    facts, selection, foresight = unequal(from_checkpoint=from_checkpoint)
    known = Known()
    for budget in BUDGETS[:: 5 if from_checkpoint else 1]:
        args = BlockSwapArgs(vram_budget=budget)
        alone = make_plan(facts, selection, args, foresight)
        among_others = plan_in_numbers(facts, selection, args, foresight, known)
        assert among_others == replace(alone, sentences=())


def test_no_choice_is_looked_at_twice_and_nothing_is_worked_out_for_sentences(monkeypatch):
    facts, selection, foresight = unequal()
    seen = looked_at(monkeypatch)
    known = Known()

    def sweep() -> None:
        for budget in BUDGETS:
            args = BlockSwapArgs(vram_budget=budget)
            plan = plan_in_numbers(facts, selection, args, foresight, known)
            assert plan.sentences == ()

    sweep()
    # One more walk a budget is the plan's own; all others are choices.
    assert len(seen) <= len(set(seen)) + len(BUDGETS)
    del seen[:]
    sweep()
    assert len(seen) == len(BUDGETS)


def test_other_speeds_or_a_smaller_host_are_other_questions():
    facts, selection, foresight = unequal(from_checkpoint=True)
    known, args = Known(), BlockSwapArgs(vram_budget=2400)
    slower = Foresight("a toy clip", 70, 5, Speeds(foresight.speeds.compute_seconds, link=20.0))
    for asked in (foresight, slower):
        for ram in (None, 900):
            said = BlockSwapArgs(vram_budget=args.vram_budget, ram_budget=ram)
            alone = plan_in_numbers(facts, selection, said, asked)
            assert plan_in_numbers(facts, selection, said, asked, known) == alone


STAGES = st.tuples(
    st.sampled_from([0.0, 0.3, 1.0, 1.7]), st.booleans(), st.sampled_from([0.1, 1.0])
)


@settings(deadline=None, max_examples=200)
@given(st.lists(STAGES, min_size=2, max_size=9), st.integers(1, 4), st.sampled_from([0.0, 0.7]))
def test_slots_in_turn_are_the_general_simulation_to_the_last_bit(drawn, slots, rest):
    stages = tuple(Stage(s, moves, copy if moves else 0.0) for s, moves, copy in drawn)
    line = Pipeline(stages, slots, prefetch=slots - 1, rest_seconds=rest)
    short = line._in_turn()
    if sum(stage.streamed for stage in stages) <= slots:
        assert short is None
        return
    general = _Run(line)
    for _ in range(8):
        short.forward()
        general.forward()
        assert (short.now, short.exposed) == (general.now, general.exposed)
