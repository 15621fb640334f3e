"""The planner's timeline against two others: the recurrence of equal blocks, and the engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.schedule.how import Outcome, run_from_disk, run_from_ram
from benchmarks.schedule.what import RATES, Case, Setting, Steps
from benchmarks.schedule.what import Pipeline as Recurrence
from blockswap.plan.inputs.foresight import Speeds
from blockswap.plan.timing.forward_time import timing_of
from blockswap.plan.timing.pipeline import Pipeline, Stage

SECONDS = st.sampled_from([0.0, 0.3, 0.9, 1.0, 1.1, 2.0])


@given(st.data(), st.integers(1, 9), st.integers(2, 4), SECONDS, SECONDS)
def test_equal_blocks_take_what_the_recurrence_says(
    data: st.DataObject, blocks: int, slots: int, copy: float, compute: float
) -> None:
    streamed = data.draw(st.sets(st.integers(0, blocks - 1)))
    slots = min(slots, max(len(streamed), 1))
    stages = tuple(
        Stage(compute, True, copy) if at in streamed else Stage(compute) for at in range(blocks)
    )
    line = Pipeline(stages, slots, prefetch=slots - 1)
    moving = streamed if len(streamed) > slots else ()
    seconds = Recurrence(blocks, moving, slots, copy, compute).step_seconds(warm=40, measured=40)
    timing = line.timing()
    assert timing.step_seconds == pytest.approx(seconds, rel=1e-3, abs=1e-9)
    assert timing.step_seconds >= line.bound_seconds() - 1e-9
    assert timing.exposed_seconds == pytest.approx(
        timing.step_seconds - timing.compute_seconds, rel=1e-3, abs=1e-9
    )


@pytest.mark.parametrize("slots", [None, 2, 1])
@pytest.mark.parametrize(
    ("streamed", "ratio"), [(4, 0.9), (10, 1.0), (16, 0.5), (20, 1.1), (20, 4)]
)
@pytest.mark.parametrize("tier", ["ram", "disk", "both"])
def test_the_engine_takes_what_the_timeline_says(
    tier: str, streamed: int, ratio: float, slots: int | None
) -> None:
    case = Case(streamed=streamed, ratio=ratio, blocks=20)
    setting = Setting(slots=slots, in_ram=0.6 if tier == "both" else 0.0)
    run = run_from_ram if tier == "ram" else run_from_disk
    outcome = run(case, setting, Steps(warm=6, measured=12))
    assert foretold(outcome) == pytest.approx(outcome.steady.step_seconds, rel=0.03)


def foretold(outcome: Outcome) -> float:
    """Seconds of a forward of that run's plan."""
    assert outcome.plan is not None
    names = [unit.name for unit in outcome.plan.units]
    speeds = Speeds(
        dict.fromkeys(names, outcome.block_seconds), link=RATES.link * 1e9, disk=RATES.disk * 1e9
    )
    return timing_of(outcome.plan, speeds, on_host=False).step_seconds
