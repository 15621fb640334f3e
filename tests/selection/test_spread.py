"""Even spreading on a ring."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockswap.errors import ArgsError
from blockswap.selection import spread


@settings(deadline=None)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_gaps_on_the_ring_differ_by_at_most_one(case):
    total, chosen = case
    positions = spread(total, chosen)
    around = [*positions[1:], positions[0] + total]
    gaps = {after - before for before, after in zip(positions, around, strict=True)}
    assert len(positions) == chosen
    assert set(positions) <= set(range(total))
    assert max(gaps) - min(gaps) <= 1


def test_positions_are_ascending_and_as_late_as_they_may():
    assert spread(10, 4) == (1, 4, 6, 9)


def test_all_and_none():
    assert spread(3, 3) == (0, 1, 2)
    assert spread(3, 0) == spread(0, 0) == ()


@pytest.mark.parametrize(("total", "chosen"), [(3, 4), (3, -1)])
def test_more_than_there_are_is_refused(total, chosen):
    with pytest.raises(ArgsError, match=f"ask for 0 to {total}"):
        spread(total, chosen)
