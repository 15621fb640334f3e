"""The summary: plan beside measurement, honest about what was not measured."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import MIB, Speeds, assert_golden, measured_of, plan_of

from blockswap.events import Counters, Measured, Visit
from blockswap.plan.swap_plan import PlannedUnit, Timing
from blockswap.report import summarise


def test_text_of_a_swap_with_both_tiers() -> None:
    plan = plan_of("RmmdRmmd")
    measured = measured_of(plan, speeds=Speeds(copy=0.0105, read=0.03))
    assert_golden("both_tiers.txt", summarise(plan, measured).text())


def test_text_of_a_swap_on_the_cpu() -> None:
    plan = plan_of("RdddRddd", device="cpu")
    measured = measured_of(plan, speeds=Speeds(read=0.011, readers=2))
    assert_golden("cpu_disk.txt", str(summarise(plan, measured)))


def test_text_before_the_first_forward() -> None:
    assert_golden("unmeasured.txt", summarise(plan_of("Rmmd"), Measured(())).text())


def test_text_of_everything_that_can_go_wrong() -> None:
    plan = plan_of("Rmmd")
    measured = measured_of(plan, forwards=6, speeds=Speeds(compute=0.001, copy=0.01))
    visits = tuple(
        replace(v, copy_started=v.arrived, copy_ended=v.started) if v.tier == "ram" else v
        for v in measured.visits
    )
    visits = (replace(visits[1], copy_ended=None), *visits[2:])
    counters = replace(
        measured.counters, untimed_visits=1, on_demand=12, host_waits=3, moved_bytes=7 * MIB
    )
    told = Measured(visits, counters, 10**9, 2 * 10**9, ("pinning failed: 2 of 3 blocks staged",))
    assert_golden("troubled.txt", summarise(plan, told).text())


def test_one_host_wait_is_singular() -> None:
    text = summarise(plan_of("Rd"), Measured((), Counters(host_waits=1))).text()
    assert "waited 1 time for a file read" in text


def test_stalls_of_a_plan_without_prefetch_are_explained_by_it() -> None:
    plan = plan_of("Rm", prefetch=0)
    text = summarise(plan, measured_of(plan)).text()
    assert "1 visit not fetched ahead (prefetch is 0: each block is fetched when" in text


def test_status_line_counts_blocks_bytes_and_waiting() -> None:
    plan = plan_of("RmmmRmmm")
    status = summarise(plan, measured_of(plan)).status_line()
    assert status.startswith("6 of 8 blocks streamed · 400.0 MiB kept off the device · ")
    assert status.endswith(" % waiting")


def test_on_the_cpu_only_blocks_on_disk_are_kept_away() -> None:
    plan = plan_of("RmmmRddd", device="cpu")
    summary = summarise(plan, Measured(()))
    assert "100.0 MiB of RAM saved" in summary.status_line()
    assert summary.placement.kept_off_bytes == 100 * MIB


def test_a_resident_embedder_is_not_counted_as_a_block() -> None:
    plan = plan_of("Rm")
    embedder = PlannedUnit("condition_embedder.text_embedder", "resident", MIB)
    plan = replace(plan, units=(embedder, *plan.units))
    assert summarise(plan, Measured(())).status_line().startswith("1 of 2 blocks streamed · ")


def test_nothing_streamed_keeps_nothing_off() -> None:
    summary = summarise(plan_of("RRR", slots=0, prefetch=0), Measured(()))
    assert summary.status_line() == (
        "0 of 3 blocks streamed · 0 B kept off the device · waiting not measured"
    )
    assert ("slots", "none, prefetch 0") in summary.rows()


def test_figures_without_a_measurement_are_none_and_never_zero() -> None:
    found = summarise(plan_of("Rmd"), Measured(())).to_dict()
    assert found["traffic"]["copied_bytes_per_forward"] is None
    assert found["traffic"]["copy_bytes_per_second"] is None
    assert found["traffic"]["read_bytes_per_second"] is None
    assert found["times"]["compute_seconds"] is None
    assert found["times"]["exposed_seconds"] is None
    assert found["times"]["hidden_seconds"] is None
    assert found["peaks"]["device_bytes"] is None
    assert found["waiting_share"] is None


def test_bytes_a_forward_match_the_plan_where_every_block_ran_once() -> None:
    plan = plan_of("RmmdRmmd")
    traffic = summarise(plan, measured_of(plan, forwards=3)).traffic
    assert traffic.whole_forwards == 3
    assert traffic.copied_bytes_per_forward == plan.copied_bytes_per_forward
    assert traffic.read_bytes_per_forward == plan.read_bytes_per_forward


def test_a_forward_that_skipped_a_block_is_left_out_of_the_bytes_a_forward() -> None:
    plan = plan_of("Rmm")
    measured = measured_of(plan)
    traffic = summarise(plan, replace(measured, visits=measured.visits[1:])).traffic
    assert traffic.whole_forwards == 1
    assert traffic.copied_bytes_per_forward == plan.copied_bytes_per_forward


def test_rates_are_bytes_over_busy_time() -> None:
    plan = plan_of("RmdRmd")
    traffic = summarise(plan, measured_of(plan, speeds=Speeds(copy=0.01, read=0.02))).traffic
    assert traffic.copy_bytes_per_second == pytest.approx(100 * MIB / 0.01)
    assert traffic.read_bytes_per_second == pytest.approx(100 * MIB / 0.02)


def test_a_share_needs_time_to_be_a_share_of() -> None:
    instant = Visit(0, "blocks.0", "resident", None, 0, 1.0, 1.0, 1.0)
    assert summarise(plan_of("R"), Measured((instant,))).times.waiting_share is None


def test_hidden_is_unmeasured_where_no_transfer_was_timed() -> None:
    untimed = Visit(0, "blocks.0", "ram", 0, 100, 1.0, 1.0, 2.0)
    times = summarise(plan_of("m"), Measured((untimed,))).times
    assert times.hidden_seconds is None
    assert times.unmeasured_transfers == 1
    assert times.compute_seconds == pytest.approx(1.0)


def test_a_visit_of_a_unit_outside_the_plan_does_no_harm() -> None:
    stranger = Visit(0, "blocks.9", "disk", 0, 0, 1.0, 1.0, 2.0, read_started=0.0, read_ended=1.0)
    traffic = summarise(plan_of("R"), Measured((stranger,))).traffic
    assert traffic.whole_forwards == 0
    assert traffic.read_bytes_per_second == 0.0


def test_embedders_are_named_beside_blocks() -> None:
    plan = plan_of("mm")
    plan = replace(plan, units=(PlannedUnit("text_embedding", "ram", MIB), *plan.units))
    status = summarise(plan, Measured(())).status_line()
    assert status.startswith("2 of 2 blocks and 1 embedder streamed · ")
    assert ("from RAM", "3 (201.0 MiB): text_embedding; blocks 0-1") in summarise(
        plan, Measured(())
    ).rows()


@settings(max_examples=40)
@given(
    st.text("Rmd", min_size=1, max_size=12),
    st.integers(0, 3),
    st.builds(
        Speeds,
        compute=st.floats(0.001, 0.1),
        copy=st.floats(0.001, 0.1),
        read=st.floats(0.001, 0.1),
        readers=st.integers(1, 3),
    ),
)
def test_any_summary_is_json_and_accounts_for_the_time(
    tiers: str, forwards: int, speeds: Speeds
) -> None:
    plan = plan_of(tiers)
    measured = measured_of(plan, forwards, speeds)
    summary = summarise(plan, measured)
    assert json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert all("\n" not in line for line in summary.lines())
    if measured.visits:
        times = summary.times
        assert times.compute_seconds is not None
        assert times.exposed_seconds is not None
        span = measured.visits[-1].ended - measured.visits[0].arrived
        assert times.compute_seconds + times.exposed_seconds == pytest.approx(span)
        assert 0.0 <= (times.waiting_share or 0.0) <= 1.0


def test_what_was_foreseen_stands_beside_what_was_measured() -> None:
    plan = plan_of("RmmdRmmd")
    measured = measured_of(plan, speeds=Speeds(copy=0.0105, read=0.03))
    timing = Timing(
        step_seconds=0.1,
        compute_seconds=0.08,
        copy_seconds=0.06,
        read_seconds=0.02,
        exposed_seconds=0.01,
        rest_seconds=0.02,
    )
    foreseen = replace(plan, activation_bytes=100 << 20, timing=timing)
    rows = dict(summarise(foreseen, measured).rows())
    assert rows["a forward"] == "86.0 ms in blocks, forecast 70.0 ms"
    assert "forecast 550.0 MiB" in rows["device"]
    assert "a forward" not in dict(summarise(plan, measured).rows())
