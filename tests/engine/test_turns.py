"""Whose forward comes next in a pool, and which units of a forward are still to come."""

import gc

import pytest

from blockswap.stream.engine.schedule import Schedule
from blockswap.stream.pool.turns import Turns


class Swap:
    """What `Turns` knows of a swap."""

    def __init__(self, turns: Turns) -> None:
        self.number = turns.number()


@pytest.fixture
def turns() -> Turns:
    return Turns()


def began(turns: Turns, *swaps: Swap) -> None:
    for swap in swaps:
        turns.began(swap)  # type: ignore[arg-type]


def follows(turns: Turns, swap: Swap) -> object:
    return turns.next_after(swap)  # type: ignore[arg-type]


def test_a_swap_alone_follows_itself(turns: Turns) -> None:
    a = Swap(turns)
    assert follows(turns, a) is a
    began(turns, a, a, a)
    assert follows(turns, a) is a


def test_a_turn_is_learnt_when_the_next_one_begins(turns: Turns) -> None:
    a, b = Swap(turns), Swap(turns)
    began(turns, a, a, b)
    assert follows(turns, b) is b
    began(turns, a)
    assert follows(turns, a) is a, "the first of two"
    began(turns, a)
    assert follows(turns, a) is b
    began(turns, a)
    assert follows(turns, a) is a, "this turn is longer"
    began(turns, b)
    assert follows(turns, b) is a


def test_only_the_one_whose_turn_it_is_hands_over(turns: Turns) -> None:
    a, b = Swap(turns), Swap(turns)
    began(turns, a, b, a)
    assert follows(turns, a) is b
    assert follows(turns, b) is b


def test_what_was_told_counts_until_it_proves_wrong(turns: Turns) -> None:
    a, b = Swap(turns), Swap(turns)
    turns.expect(a, 2, b)  # type: ignore[arg-type]
    began(turns, a, a)
    assert follows(turns, a) is b
    began(turns, a, b, a, a)
    assert follows(turns, a) is a
    began(turns, a)
    assert follows(turns, a) is b


def test_three_in_a_ring(turns: Turns) -> None:
    a, b, c = Swap(turns), Swap(turns), Swap(turns)
    began(turns, a, b, c, a)
    assert follows(turns, a) is b
    began(turns, b)
    assert follows(turns, b) is c
    began(turns, c)
    assert follows(turns, c) is a


def test_who_is_gone_or_closed_is_not_waited_for(turns: Turns) -> None:
    a, b, c = Swap(turns), Swap(turns), Swap(turns)
    began(turns, a, b, a)
    del b
    gc.collect()
    assert follows(turns, a) is a
    began(turns, c, a)
    assert follows(turns, a) is c
    turns.forget(c)  # type: ignore[arg-type]
    assert follows(turns, a) is a
    turns.forget(a)  # type: ignore[arg-type]
    began(turns, a)
    assert follows(turns, a) is a


def test_numbers_are_never_given_twice(turns: Turns) -> None:
    assert len({turns.number() for _ in range(100)}) == 100


def test_the_rest_of_a_forward_and_its_start() -> None:
    schedule = Schedule(range(5), frozenset({0, 2, 4}))
    assert schedule.first() == (0, 2, 4)
    assert schedule.rest() == (), "before the first unit the cursor is behind the last"
    schedule.entered(0)
    assert schedule.rest() == (2, 4)
    assert schedule.upcoming() == (2, 4, 0)
    schedule.entered(4)
    assert schedule.rest() == ()
    assert schedule.upcoming() == (0, 2, 4)
    schedule.stream({1})
    assert schedule.first() == (1,)
    assert schedule.rest() == ()


def test_the_start_follows_the_order_that_was_learnt() -> None:
    schedule = Schedule(range(3), frozenset({0, 1, 2}))
    for unit in (2, 0, 1):
        schedule.entered(unit)
    schedule.begin_forward()
    assert schedule.first() == (2, 0, 1)
