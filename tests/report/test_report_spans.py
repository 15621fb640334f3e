"""What transfer, hidden and exposed mean."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockswap.events import Visit
from blockswap.report.spans import (
    busy_seconds,
    has_unmeasured_transfer,
    hidden_seconds,
    is_late,
    last_forwards,
    transfer_spans,
)

RAM = Visit(0, "blocks.1", "ram", 0, 100, 10.0, 10.5, 12.0, copy_started=9.0, copy_ended=10.5)
DISK = Visit(
    0, "blocks.2", "disk", 1, 100, 10.0, 10.0, 11.0,
    copy_started=6.0, copy_ended=7.0, read_started=1.0, read_ended=4.0,
)  # fmt: skip
RESIDENT = Visit(0, "blocks.0", "resident", None, 0, 1.0, 1.0, 2.0)

times = st.floats(0.0, 1e4, allow_nan=False)


@st.composite
def visits(draw: st.DrawFn) -> Visit:
    arrived = draw(times)
    started = arrived + draw(times)
    copy = sorted((draw(times), draw(times))) if draw(st.booleans()) else (None, None)
    read = sorted((draw(times), draw(times))) if draw(st.booleans()) else (None, None)
    return Visit(0, "blocks.0", "disk", 0, 1, arrived, started, started + 1.0, *copy, *read)


def test_hidden_is_the_transfer_less_the_wait() -> None:
    assert hidden_seconds(RAM) == pytest.approx(1.0)
    assert RAM.exposed_seconds == pytest.approx(0.5)


def test_a_gap_between_read_and_copy_is_not_transfer() -> None:
    assert hidden_seconds(DISK) == pytest.approx(3.0 + 1.0)


def test_overlapping_read_and_copy_count_once() -> None:
    overlapping = replace(DISK, copy_started=3.0, copy_ended=5.0)
    assert hidden_seconds(overlapping) == pytest.approx(4.0)


def test_a_read_straight_into_the_slot_is_a_transfer_without_a_copy() -> None:
    straight = replace(DISK, copy_started=None, copy_ended=None, copied_bytes=0)
    assert transfer_spans(straight) == ((1.0, 4.0),)
    assert hidden_seconds(straight) == pytest.approx(3.0)


def test_a_wait_longer_than_the_own_transfer_hides_nothing() -> None:
    queued = replace(RAM, arrived=1.0)
    assert hidden_seconds(queued) == 0.0


def test_a_resident_moves_nothing() -> None:
    assert transfer_spans(RESIDENT) == ()
    assert hidden_seconds(RESIDENT) == 0.0
    assert not has_unmeasured_transfer(RESIDENT)


def test_a_copy_without_times_is_unmeasured() -> None:
    assert has_unmeasured_transfer(replace(RAM, copy_ended=None))
    assert not has_unmeasured_transfer(RAM)


def test_late_means_that_no_byte_moved_before_entry() -> None:
    assert is_late(replace(RAM, copy_started=10.1))
    assert not is_late(RAM)
    assert not is_late(RESIDENT)


@given(visits())
def test_hidden_and_exposed_cover_the_transfer(visit: Visit) -> None:
    transfer = busy_seconds(transfer_spans(visit))
    hidden = hidden_seconds(visit)
    assert 0.0 <= hidden <= transfer
    assert hidden + visit.exposed_seconds >= transfer - 1e-9


@given(st.lists(st.tuples(times, times).map(lambda span: (min(span), max(span)))))
def test_busy_seconds_lie_between_the_longest_and_the_sum(spans: list[tuple[float, float]]) -> None:
    lengths = [end - start for start, end in spans]
    busy = busy_seconds(spans)
    assert busy <= sum(lengths) + 1e-6
    assert busy >= max(lengths, default=0.0) - 1e-6
    assert busy_seconds(spans + spans) == pytest.approx(busy)


def test_busy_seconds_join_what_touches_and_skip_gaps() -> None:
    assert busy_seconds([(0.0, 1.0), (1.0, 2.0), (5.0, 6.0), (5.5, 5.7)]) == pytest.approx(3.0)


def test_last_forwards_are_in_order_of_arrival() -> None:
    later = replace(RESIDENT, forward=3, arrived=20.0)
    latest = replace(RESIDENT, forward=5, arrived=30.0)
    assert last_forwards((latest, RESIDENT, later), 2) == (later, latest)
    assert last_forwards((), 2) == ()


def test_a_visit_without_a_copy_took_no_copy_time() -> None:
    visit = Visit(1, "blocks.0", "resident", None, 0, arrived=0.0, started=0.0, ended=1.0)
    assert visit.copy_seconds == 0.0
