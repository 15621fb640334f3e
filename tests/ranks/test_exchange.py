"""Parts that go through shared memory: right whoever is late, and each step of it is needed."""

import threading
import time
from collections.abc import Callable, Sequence

import pytest
import torch

from blockswap.ranks.exchange import SharedExchange, exchange_bytes
from blockswap.ranks.segment import make_segment, map_segment

SIZE = 4096


def exchanges(count: int, seconds: float = 5.0, ended: Sequence[int] = ()) -> list[SharedExchange]:
    """Those of all ranks, which are threads here, each with a mapping of its own."""
    made = make_segment(exchange_bytes(count * SIZE), "parts")
    return [
        SharedExchange(
            made if rank == 0 else map_segment(made.address, keep=True),
            rank,
            count,
            seconds,
            lambda: list(ended),
        )
        for rank in range(count)
    ]


def wrong_in(
    ranks: Sequence[SharedExchange], late: Callable[[int, int], float], gathers: int = 6
) -> list[tuple[int, int]]:
    """(rank, number) of gathers that brought something else than what all ranks laid there.

    `late(rank, number)`: seconds that the rank pauses before that gather and in it.
    """
    wrong: list[tuple[int, int]] = []

    def run(rank: int) -> None:
        exchange, wait = ranks[rank], ranks[rank]._wait

        def paused(number: int) -> None:
            wait(number)
            time.sleep(late(rank, number))

        exchange._wait = paused  # type: ignore[method-assign]
        for number in range(gathers):
            whole = torch.zeros(len(ranks) * SIZE, dtype=torch.uint8)
            part = whole.narrow(0, rank * SIZE, SIZE)
            part.fill_(16 * number + rank + 1)
            time.sleep(late(rank, number) / 2)
            exchange.gather(whole, part)
            wanted = torch.arange(1, len(ranks) + 1).repeat_interleave(SIZE) + 16 * number
            if not torch.equal(whole, wanted.to(torch.uint8)):
                wrong.append((rank, number))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return wrong


def one_is_late(rank: int, number: int) -> float:
    return 0.03 if (rank + number) % 3 == 0 else 0.0


@pytest.mark.parametrize("count", [2, 3, 4])
def test_whoever_is_late_all_get_all_parts(count: int) -> None:
    assert wrong_in(exchanges(count), one_is_late) == []


def test_with_one_row_a_part_is_overwritten_before_it_is_taken() -> None:
    ranks = exchanges(2)
    for exchange in ranks:
        exchange._rows = exchange._rows[:1].expand(2, -1)
    assert wrong_in(ranks, lambda rank, number: 0.05 if rank else 0.0)


def test_without_the_wait_a_part_is_taken_before_it_is_there() -> None:
    ranks = exchanges(2)
    for exchange in ranks:
        exchange._wait = lambda number: None  # type: ignore[method-assign]
    assert wrong_in(ranks, lambda rank, number: 0.05 if rank else 0.0)


@pytest.mark.parametrize(
    ("ended", "said"), [((), "was not there within 0.3 s"), ((1,), "it ended before its part")]
)
def test_a_rank_that_does_not_come_is_not_waited_for_for_ever(
    ended: Sequence[int], said: str
) -> None:
    first, _ = exchanges(2, 0.3, ended)
    whole = torch.zeros(2 * SIZE, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=said):
        first.gather(whole, whole.narrow(0, 0, SIZE))
