"""The correction of a plan by facts: within the limits, as many as fit, evenly, and at rest."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blockswap.plan.correction import promotion as module
from blockswap.plan.correction.promotion import (
    Correction,
    Limits,
    Movable,
    Use,
    correct,
    half_leaving,
    leaving,
)

GIB = 2**30


@st.composite
def units(draw: st.DrawFn) -> list[Movable]:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=16))
    equal = draw(st.booleans())
    return [
        Movable(
            name=f"blocks.{index}",
            bytes=(sizes[0] if equal else size) * GIB,
            resident=draw(st.booleans()),
            demotable=draw(st.integers(0, 9)) > 0,
        )
        for index, size in enumerate(sizes)
    ]


def after(found: list[Movable], correction: Correction) -> list[Movable]:
    """The units once the correction was carried out."""
    return [
        replace(
            unit,
            resident=(unit.resident or unit.name in correction.promote)
            and unit.name not in correction.demote,
        )
        for unit in found
    ]


def held(found: list[Movable]) -> int:
    return sum(unit.bytes for unit in found if unit.resident)


@given(units(), st.integers(0, 80), st.integers(1, 160), st.none() | st.integers(1, 120))
def test_a_correction_keeps_the_limits_and_comes_to_rest(
    found: list[Movable], activations: int, total: int, weights: int | None
) -> None:
    limits = Limits(total * GIB, None if weights is None else weights * GIB)
    use = Use(held(found), held(found) + activations * GIB)
    correction = correct(found, use, limits)
    assert correction == correct(found, use, limits)
    assert not (correction.promote and correction.demote)
    changed = after(found, correction)
    peak = held(changed) + activations * GIB
    room = limits.total_bytes - limits.headroom_bytes - peak  # type: ignore[operator]
    if correction.promote:
        assert room >= 0
        assert weights is None or held(changed) <= weights * GIB
    if correction.demote:
        stuck = all(not unit.demotable for unit in changed if unit.resident)
        assert room >= 0 or stuck
    again = correct(changed, Use(held(changed), peak), limits)
    assert not again.demote
    if len({unit.bytes for unit in found}) == 1 and not correction.demote:
        assert not again.promote, "all that fit were added at once"


@given(units(), st.integers(1, 100), st.integers(0, 30))
def test_the_fewest_equal_units_leave_that_free_enough(
    found: list[Movable], wanted: int, entry: int
) -> None:
    gone = leaving(found, wanted * GIB, entry * GIB)
    sizes = {unit.name: unit.bytes for unit in found if unit.resident and unit.demotable}
    freed = sum(sizes[name] for name in gone)
    if not gone:
        assert sum(sizes.values()) <= entry * GIB
        return
    assert freed > entry * GIB
    assert freed >= (wanted + entry) * GIB or len(gone) == len(sizes)
    if len(set(sizes.values())) == 1:
        assert freed - next(iter(sizes.values())) < (wanted + entry) * GIB


ONE_IS_LARGE = [Movable(f"blocks.{n}", GIB, resident=False, demotable=False) for n in range(9)]
ONE_IS_LARGE.append(Movable("blocks.9", 7 * GIB, resident=False, demotable=False))


@given(units(), st.integers(0, 60), st.integers(1, 160), st.integers(1, 40))
@example(ONE_IS_LARGE, 0, 3, 5)
def test_more_room_never_means_fewer_residents(
    found: list[Movable], activations: int, total: int, more: int
) -> None:
    use = Use(held(found), held(found) + activations * GIB)
    counts = [
        sum(unit.resident for unit in after(found, correct(found, use, Limits(limit * GIB))))
        for limit in (total, total + more)
    ]
    assert counts[0] <= counts[1]


@given(st.integers(4, 40), st.integers(1, 10))
def test_those_that_join_and_leave_are_spread_evenly(total: int, count: int) -> None:
    count = min(count, total)
    streamed = [Movable(f"blocks.{n}", GIB, resident=False) for n in range(total)]
    limits = Limits(1000 * GIB)
    free = limits.headroom_bytes + count * GIB
    names = correct(streamed, Use(0, 1000 * GIB - free), limits).promote
    residents = [replace(unit, resident=True) for unit in streamed]
    for chosen in (names, leaving(residents, count * GIB)):
        places = [int(name.split(".")[1]) for name in chosen]
        assert len(places) == count
        ring = [*places, places[0] + total]
        gaps = {b - a for a, b in zip(ring, ring[1:], strict=False)}
        assert max(gaps) - min(gaps) <= 1


@given(units())
def test_half_of_the_bytes_leave_where_nobody_says_how_many(found: list[Movable]) -> None:
    sizes = {unit.name: unit.bytes for unit in found if unit.resident and unit.demotable}
    gone = half_leaving(found)
    assert bool(gone) is bool(sizes)
    assert 2 * sum(sizes[name] for name in gone) >= sum(sizes.values())


@pytest.mark.parametrize(
    ("peak", "promoted", "demoted"),
    [
        (10.0, 8, 0),  # 20 - 1 of headroom - 10 leaves 9, of which the weights' limit allows 8
        (18.5, 0, 0),  # half of the headroom is still there: left alone
        (19.4, 0, 0),
        (19.6, 0, 1),
        (21.0, 0, 2),
    ],
)
def test_headroom_is_kept_with_room_to_breathe(peak: float, promoted: int, demoted: int) -> None:
    found = [Movable(f"blocks.{n}", GIB, resident=n % 2 == 0) for n in range(40)]
    limits = Limits(20 * GIB, 28 * GIB)
    correction = correct(found, Use(20 * GIB, int(peak * GIB)), limits)
    assert (len(correction.promote), len(correction.demote)) == (promoted, demoted)
    assert correction.room_bytes == 20 * GIB - int(peak * GIB)


def test_headroom_is_a_twentieth_and_never_less_than_its_least() -> None:
    assert Limits(20 * GIB).headroom_bytes == GIB
    assert Limits(2 * GIB).headroom_bytes == module.LEAST_HEADROOM_BYTES == 256 * 2**20


def test_without_a_limit_nothing_is_corrected() -> None:
    found = [Movable("blocks.0", GIB, resident=False), Movable("blocks.1", GIB, resident=True)]
    assert not correct(found, Use(GIB, 2 * GIB), Limits(None, GIB))
