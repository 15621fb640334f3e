"""Our schedule on the virtual clock: exact figures, the same on every machine."""

from types import ModuleType

import pytest

from benchmarks.schedule.how import RUNNERS, run_from_disk, run_from_ram
from benchmarks.schedule.what import (
    RATES,
    Case,
    Pipeline,
    Rates,
    Setting,
    Steps,
    block_bytes,
    tail,
)
from blockswap.selection import spread

pytestmark = pytest.mark.usefixtures("clock")
STEPS = Steps(warm=3, measured=6)
# Gathers that take as long as the copies of the parts: the hardest to hide.
SETTINGS = {
    "parts": Setting(ranks=4, gather=30.0),
    "file parts": Setting(ranks=4, gather=30.0, disk=40.0),
}
# The corners, the neighbourhood of transfer = compute, and the fractions with the most uneven gaps.
CORNERS = [(40, 1.0), (33, 0.95), (32, 1.0), (27, 1.05), (20, 0.1), (5, 10.0)]


@pytest.mark.parametrize("tier", RUNNERS)
@pytest.mark.parametrize(("streamed", "ratio"), CORNERS)
def test_a_step_takes_at_most_two_percent_more_than_the_bound(
    tier: str, streamed: int, ratio: float
) -> None:
    outcome = RUNNERS[tier](Case(streamed, ratio), SETTINGS.get(tier, Setting()), STEPS)
    assert 1 - 1e-9 <= outcome.over_bound <= 1.02


@pytest.mark.parametrize("disk", [5.0, 10.0, 20.0])
def test_two_hops_of_the_same_speed_are_hidden_behind_each_other(disk: float) -> None:
    outcome = run_from_disk(Case(33, 1.0), Setting(), STEPS, Rates(link=10.0, disk=disk))
    assert outcome.over_bound <= 1.02


def test_two_slots_at_transfer_equal_to_compute_wait_ten_percent() -> None:
    outcome = run_from_ram(Case(33, 1.0), Setting(slots=2), STEPS)
    assert outcome.over_bound == pytest.approx(1.1008, abs=1e-3)


def test_contiguous_residents_wait_half_a_step_at_transfer_equal_to_compute() -> None:
    outcome = run_from_ram(Case(10, 1.0), Setting(residents="contiguous"), STEPS)
    assert outcome.over_bound == pytest.approx(1.5, abs=1e-3)


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize(("streamed", "ratio"), [(32, 1.0), (12, 1.25)])
@pytest.mark.parametrize("residents", ["spread", "contiguous"])
def test_the_engine_does_what_its_rules_say(
    slots: int, streamed: int, ratio: float, residents: str
) -> None:
    case = Case(streamed, ratio)
    setting = Setting(slots, "spread" if residents == "spread" else "contiguous")
    copy = RATES.link_seconds(block_bytes())
    expected = Pipeline(
        blocks=case.blocks,
        streamed=spread(case.blocks, streamed) if residents == "spread" else tail(case),
        slots=slots,
        copy_seconds=copy,
        compute_seconds=case.compute_seconds(streamed * copy),
    )
    outcome = run_from_ram(case, setting, STEPS)
    theory = expected.step_seconds(warm=STEPS.warm, measured=STEPS.measured)
    assert outcome.steady.step_seconds == pytest.approx(theory, rel=1e-6)


@pytest.mark.parametrize("tier", RUNNERS)
def test_the_forward_thread_never_waits_for_the_device_and_nothing_is_copied_back(
    tier: str,
) -> None:
    steady = RUNNERS[tier](Case(32, 1.0), SETTINGS.get(tier, Setting()), STEPS).steady
    assert (steady.host_syncs, steady.copied_back_bytes, steady.races) == (0, 0, 0)


def test_exactly_the_streamed_bytes_are_copied_in_each_forward() -> None:
    assert run_from_ram(Case(13, 0.5), Setting(), STEPS).steady.copied_bytes == 13 * block_bytes()


def test_disk_figures_do_not_depend_on_how_threads_are_scheduled(clock: ModuleType) -> None:
    runs = {run_from_disk(Case(32, 0.95), Setting(slots=2), STEPS).steady for _ in range(3)}
    assert len({round(steady.step_seconds * 1e12) for steady in runs}) == 1


@pytest.mark.parametrize("on_disk", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize(("streamed", "ratio"), [(40, 1.0), (33, 0.95), (20, 1.05), (13, 0.25)])
def test_ram_and_disk_mixed_run_at_the_bound(streamed: int, ratio: float, on_disk: float) -> None:
    case = Case(streamed, ratio)
    outcome = run_from_disk(case, Setting(in_ram=1 - on_disk), Steps(warm=6, measured=6))
    assert 1 - 1e-9 <= outcome.over_bound <= 1.02


def test_a_mixed_figure_does_not_depend_on_how_threads_are_scheduled() -> None:
    case = Case(33, 1.0)
    runs = {run_from_disk(case, Setting(in_ram=0.7), STEPS).steady.step_seconds for _ in range(3)}
    assert len({round(seconds * 1e12) for seconds in runs}) == 1
