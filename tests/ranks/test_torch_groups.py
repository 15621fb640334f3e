"""How ranks meet in a store that outlives them: under words of this life, whoever comes first."""

import threading
from typing import Any

import pytest
import torch.distributed as dist

from blockswap.ranks.torch_groups import _meet

RANKS = (0, 2, 5)


def meet(store: Any, life: str, ranks: tuple[int, ...] = RANKS) -> dict[int, Any]:
    """What each of `ranks` was told, each a thread that comes later than the one before."""
    told: dict[int, Any] = {}

    def run(rank: int) -> None:
        try:
            told[rank] = _meet(
                store, RANKS, rank, f"{life} {rank}", 5.0 if len(ranks) == 3 else 0.3
            )
        except RuntimeError as error:
            told[rank] = str(error)

    threads = [threading.Timer(0.05 * n, run, [rank]) for n, rank in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


@pytest.mark.parametrize("order", [RANKS, RANKS[::-1], (2, 5, 0)])
def test_an_earlier_life_is_not_taken_for_this_one(order: tuple[int, ...]) -> None:
    store: Any = dist.HashStore()
    for life in ("first", "second", "third"):
        wanted = {rank: f"{life} {rank}" for rank in RANKS}
        assert meet(store, life, order if life == "second" else RANKS) == dict.fromkeys(
            RANKS, wanted
        )


def test_who_does_not_come_is_missed_though_an_earlier_life_did() -> None:
    store: Any = dist.HashStore()
    meet(store, "first")
    told = meet(store, "second", (0, 5))
    assert set(told) == {0, 5}
    assert all("did not come within 0.3 s" in said for said in told.values())
    wanted = {rank: f"third {rank}" for rank in RANKS}
    assert meet(store, "third") == dict.fromkeys(RANKS, wanted)
