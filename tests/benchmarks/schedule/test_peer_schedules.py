"""Peers' schedules: what each is known for shows on the clock, and none is below the bound."""

import pytest

from benchmarks.schedule.how import run_from_ram, run_peer
from benchmarks.schedule.what import PEERS, Case, Setting, Steps, block_bytes

pytestmark = pytest.mark.usefixtures("clock")
STEPS = Steps(warm=3, measured=4)
EQUAL = Case(streamed=29, ratio=1.0)


@pytest.mark.parametrize("peer", PEERS)
def test_with_uneven_gaps_at_transfer_equal_to_compute_every_peer_is_slower(peer: str) -> None:
    ours = run_from_ram(EQUAL, Setting(), STEPS).steady.step_seconds
    assert run_peer(peer, EQUAL, STEPS).steady.step_seconds > 1.02 * ours


@pytest.mark.parametrize("peer", PEERS)
def test_no_schedule_beats_the_bound(peer: str) -> None:
    assert run_peer(peer, Case(streamed=40, ratio=0.8), STEPS).over_bound >= 1 - 1e-9


@pytest.mark.parametrize(
    ("peer", "expected"),
    # Compute and, one after the other, a copy in, one back: pinned, or pageable at half the rate.
    [("WanVideoWrapper, use_non_blocking", 1 + 1 + 1), ("WanVideoWrapper", 1 + 2 + 2)],
)
def test_wanvideo_wrapper_adds_both_copies_to_the_compute(peer: str, expected: float) -> None:
    outcome = run_peer(peer, EQUAL, STEPS)
    assert outcome.over_bound == pytest.approx(expected, rel=1e-6)
    assert outcome.steady.copied_back_bytes == 29 * block_bytes()


def test_lightx2v_streams_everything_with_two_waits_a_block() -> None:
    steady = run_peer("LightX2V", EQUAL, STEPS).steady
    assert steady.host_syncs == 2 * 40
    assert steady.copied_bytes == 40 * block_bytes()


def test_lightx2v_is_as_fast_as_the_bound_where_everything_is_streamed() -> None:
    assert run_peer("LightX2V", Case(40, 1.0), STEPS).over_bound == pytest.approx(1.0, rel=1e-6)


def test_mmgp_waits_for_the_device_once_per_streamed_block() -> None:
    assert run_peer("mmgp", EQUAL, STEPS).steady.host_syncs == 29


@pytest.mark.parametrize("peer", ["musubi-tuner, pinned", "musubi-tuner, staged"])
def test_musubi_moves_every_block_both_ways(peer: str) -> None:
    steady = run_peer(peer, EQUAL, STEPS).steady
    assert steady.copied_bytes == steady.copied_back_bytes == 40 * block_bytes()


def test_diffusers_does_not_prefetch_the_first_block_of_the_next_forward() -> None:
    outcome = run_peer("diffusers group offload, stream", Case(40, 1.0), STEPS)
    assert outcome.over_bound == pytest.approx(1 + 1 / 40, rel=1e-3)
