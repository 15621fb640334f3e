"""What a plan says of a workload: peak, seconds, what is binding, what one more GiB would buy."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_samples import blocks, layout_of, machine

from blockswap.plan import Foresight, Speeds, SwapPlan, make_plan
from blockswap.plan.correction.change_sentences import correction_sentence, recent, retry_sentence
from blockswap.plan.correction.promotion import Correction
from blockswap.plan.timing.pipeline import Pipeline, Stage
from blockswap.selection import BlockSwapArgs, select
from blockswap.units import GIB, MIB

FACTS = machine(blocks(8, 100 * MIB), granularity=512, rest_bytes=MIB)


def plan(*, link: float | None = 1e9, disk: float = 1e9, facts=FACTS, **wish: object) -> SwapPlan:
    """A plan for blocks that compute 10 ms each; 100 MiB take 105 ms over a link of 1 GB/s."""
    speeds = Speeds({unit.name: 0.01 for unit in facts.units}, link=link, disk=disk)
    args = BlockSwapArgs(**wish)
    foresight = Foresight("a toy clip", 50 * MIB, 5 * MIB, speeds)
    return make_plan(facts, select(args, layout_of(facts)), args, foresight)


def said(found: SwapPlan, part: str) -> str:
    (sentence,) = [sentence for sentence in found.sentences if part in sentence]
    return sentence


def test_the_peak_is_taken_apart() -> None:
    found = plan(vram_budget=500 * MIB)
    assert said(found, "at the peak").startswith("a toy clip: ")
    assert "50.0 MiB activations" in said(found, "at the peak")
    assert "5.0 MiB more is left as a margin" in said(found, "at the peak")


def test_a_gib_more_is_worth_what_it_saves() -> None:
    found = plan(vram_budget=500 * MIB)
    assert "the link to the device is binding: 1 GiB more" in said(found, "binding")
    assert "and saves" in said(found, "binding")
    assert "waiting for" in said(found, "a forward takes")


def test_exact_blocks_are_not_bought_with_memory() -> None:
    assert said(plan(blocks_to_swap=8), "binding") == "the link to the device is binding"


def test_the_disk_is_named_where_it_binds() -> None:
    file = replace(FACTS, from_checkpoint=True)
    found = plan(facts=file, link=1e11, disk=1e9, blocks_to_swap=8)
    assert said(found, "binding") == "the disk is binding"


def test_compute_is_named_where_it_binds() -> None:
    found = plan(link=1e12, vram_budget=500 * MIB)
    assert said(found, "binding").startswith("compute is binding")
    assert "hidden under it" in said(found, "a forward takes")


def test_nothing_moves_where_all_stays() -> None:
    assert "nothing moves" in said(plan(vram_budget=2 * GIB), "a forward takes")


def test_memory_that_buys_too_little_is_not_recommended() -> None:
    """A GiB more is not a quarter of a block."""
    facts = machine(blocks(6, 4 * GIB), granularity=512, rest_bytes=MIB)
    found = plan(facts=facts, vram_budget=8 * GIB + 70 * MIB)
    assert said(found, "binding").endswith("would not make a forward faster")


def test_bytes_are_told_where_seconds_are_not_known() -> None:
    args = BlockSwapArgs(vram_budget=500 * MIB)
    found = make_plan(FACTS, select(args, layout_of(FACTS)), args, Foresight("a clip", 50 * MIB))
    assert said(found, "at the peak")
    assert not any("binding: 1 GiB" in sentence for sentence in found.sentences)


STAGES = st.builds(
    Stage,
    compute_seconds=st.sampled_from([0.0, 0.5, 1.0]),
    streamed=st.booleans(),
    copy_seconds=st.sampled_from([0.1, 1.0, 3.0]),
    read_seconds=st.sampled_from([0.0, 0.2, 1.0, 5.0]),
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(STAGES, min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(0, 5),
    st.integers(1, 3),
    st.booleans(),
)
def test_no_timeline_beats_its_compute(
    stages: list[Stage], slots: int, prefetch: int, buffers: int, on_host: bool
) -> None:
    """Where few are streamed one may still be in its slot when it is needed again, so copies are
    no bound; a plan never looks further ahead than it has slots for beside the block that runs."""
    prefetch = min(prefetch, slots - 1)
    still = [s if s.streamed else Stage(s.compute_seconds) for s in stages]
    moved = [replace(s, copy_seconds=0.0) for s in still] if on_host else still
    line = Pipeline(tuple(moved), slots, prefetch, buffers, rest_seconds=0.25, on_host=on_host)
    timing = line.timing()
    assert timing.step_seconds >= timing.compute_seconds * (1 - 1e-9)
    assert timing.block_seconds >= timing.exposed_seconds >= 0.0


def test_a_host_that_grants_memory_is_believed() -> None:
    granted = replace(FACTS, granted_bytes=450 * MIB)
    args = BlockSwapArgs()
    found = make_plan(granted, select(args, layout_of(granted)), args)
    assert found.device_bytes <= 450 * MIB
    assert "450.0 MiB is granted to weights and slots" in said(found, "granted")


def test_a_grant_that_is_too_small_is_told() -> None:
    granted = replace(FACTS, granted_bytes=MIB)
    args = BlockSwapArgs()
    found = make_plan(granted, select(args, layout_of(granted)), args)
    assert found.slots == 1
    assert "less than the" in said(found, "granted")


def test_on_the_host_reads_run_under_compute_and_nothing_is_copied() -> None:
    stages = tuple(Stage(1.0, True, 0.0, 0.5, f"blocks.{at}") for at in range(6))
    timing = Pipeline(stages, slots=2, prefetch=1, on_host=True).timing()
    assert timing.step_seconds == pytest.approx(6.0)
    assert timing.exposed_seconds == pytest.approx(0.0)
    assert timing.hidden_seconds == pytest.approx(3.0)
    late = Pipeline(stages, slots=1, prefetch=0, on_host=True).timing()
    assert late.step_seconds == pytest.approx(9.0)
    slow = tuple(replace(stage, read_seconds=2.0) for stage in stages)
    assert Pipeline(slow, slots=3, prefetch=2, on_host=True).timing().step_seconds == pytest.approx(
        12.0, rel=0.01
    )


def test_what_changes_while_it_runs_is_told() -> None:
    found = plan(vram_budget=500 * MIB)
    more = Correction(promote=("blocks.1",), demote=(), room_bytes=3 * GIB)
    assert "3.0 GiB were still free: 1 more block stays" in correction_sentence(1, more, found)
    over = Correction(promote=(), demote=("blocks.1", "blocks.2"), room_bytes=-GIB)
    assert "used 1.0 GiB more than is meant" in correction_sentence(2, over, found)
    short = replace(over, room_bytes=GIB)
    assert "forward 3 left only 1.0 GiB free" in correction_sentence(3, short, found)
    assert "was dropped and it was run again" in retry_sentence(4, None, (), found)
    assert "asked for 1.0 GiB more" in retry_sentence(4, GIB, ("blocks.3",), found)


def test_many_changes_are_counted_and_the_last_are_told() -> None:
    told = recent([f"change {number}" for number in range(30)])
    assert told[0].endswith("earlier changes of the plan")
    assert told[-1] == "change 29"
    assert recent(["one"]) == ("one",)
