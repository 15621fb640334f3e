"""Which bar stands where."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import Speeds, measured_of, plan_of

from blockswap.events import Measured
from blockswap.report.lanes import forward_starts, lanes_of, short_label, window_of

EVER = (float("-inf"), float("inf"))


@pytest.mark.parametrize(
    ("unit", "label"),
    [
        ("blocks.12", "12"),
        ("model.blocks.3", "3"),
        ("vace_blocks.3", "v3"),
        ("text_embedding", "te"),
        ("img_emb", "im"),
        ("condition_embedder.image_embedder", "im"),
    ],
)
def test_labels_are_short(unit: str, label: str) -> None:
    assert short_label(unit) == label


def test_the_window_spans_the_last_forwards() -> None:
    measured = measured_of(plan_of("Rm"), forwards=3)
    window = window_of(measured, 2)
    assert window == (measured.visits[2].arrived, measured.visits[-1].ended)
    assert [forward for forward, _ in forward_starts(measured, 2)] == [1, 2]


def test_there_is_no_window_where_nothing_was_timed() -> None:
    assert window_of(Measured(()), 2) is None


def test_lanes_without_bars_are_left_out() -> None:
    resident = measured_of(plan_of("RR"))
    assert [lane.title for lane in lanes_of(resident, EVER)] == ["compute"]
    both = measured_of(plan_of("Rmd"))
    assert [lane.title for lane in lanes_of(both, EVER)] == ["compute", "copy engine", "disk reads"]


def test_bars_are_clipped_to_the_window() -> None:
    measured = measured_of(plan_of("RR"), forwards=1)
    (lane,) = lanes_of(measured, (0.005, 0.015))
    assert [(bar.start, bar.end) for bar in lane.rows[0]] == [(0.005, 0.01), (0.01, 0.015)]


def test_a_copy_for_the_forward_after_the_window_is_shown() -> None:
    measured = measured_of(plan_of("Rm"), forwards=1)
    ahead = replace(
        measured.visits[1], forward=1, arrived=9.0, started=9.0, ended=9.5,
        copy_started=0.011, copy_ended=0.013,
    )  # fmt: skip
    lanes = lanes_of(replace(measured, visits=(*measured.visits, ahead)), (0.0, 0.02))
    copies = lanes[1].rows[0]
    assert (copies[-1].start, copies[-1].end) == (0.011, 0.013)


def test_two_reads_at_once_take_two_rows() -> None:
    plan = plan_of("RdddRddd", device="cpu")
    measured = measured_of(plan, speeds=Speeds(read=0.015, readers=2))
    assert len(lanes_of(measured, EVER)[1].rows) == 2


@settings(max_examples=40)
@given(
    st.text("Rmd", min_size=1, max_size=10),
    st.builds(Speeds, copy=st.floats(0.001, 0.1), read=st.floats(0.001, 0.1)),
)
def test_bars_of_a_row_never_overlap_and_none_is_lost(tiers: str, speeds: Speeds) -> None:
    measured = measured_of(plan_of(tiers), speeds=speeds)
    lanes = lanes_of(measured, EVER)
    for lane in lanes:
        for row in lane.rows:
            assert all(left.end <= right.start for left, right in pairwise(row))
    found = [bar.kind for lane in lanes for row in lane.rows for bar in row]
    assert found.count("resident") == 2 * tiers.count("R")
    assert found.count("streamed") == 2 * (len(tiers) - tiers.count("R"))
    assert found.count("read") == 2 * tiers.count("d")
