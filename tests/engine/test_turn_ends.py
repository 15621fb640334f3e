"""A turn that ends after so many forwards: nothing is brought for another, which may come."""

from pathlib import Path

import pytest
import torch
from cases import Shelf, expect_refusal, forward, opened, reference

from blockswap.errors import ArgsError, StateError
from blockswap.stream.pool.pool import Pool
from engine_seams import collect_pools, wait_for_readers

ARGS = {"blocks_to_swap": 5, "prefetch_blocks": 1}


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    return collect_pools(monkeypatch)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.mark.parametrize("store", ["ram", "pageable", "disk", "file-both"])
def test_nothing_is_brought_for_a_forward_that_does_not_come(
    store: str, sim_device: torch.device, pools: list[Pool], shelf: Shelf
) -> None:
    with opened(store, "original", sim_device, ARGS, shelf=shelf) as (model, swap), torch.no_grad():
        swap.ends_after(3)
        for _ in range(3):
            out = forward(model, "original", sim_device)
        wait_for_readers(pools[-1])
        counted = swap.measured().counters
        assert counted.copied_bytes == 3 * swap.plan.copied_bytes_per_forward
        assert counted.read_bytes == 3 * swap.plan.read_bytes_per_forward
        assert torch.equal(out, reference("original", sim_device))
        assert torch.equal(forward(model, "original", sim_device), out), "one that was not told of"


def test_on_the_cpu_from_the_file(pools: list[Pool], shelf: Shelf) -> None:
    device = torch.device("cpu")
    with opened("disk", "original", device, ARGS, shelf=shelf) as (model, swap), torch.no_grad():
        swap.ends_after(2)
        for _ in range(2):
            assert torch.equal(forward(model, "original", device), reference("original", device))
        wait_for_readers(pools[-1])
        assert swap.measured().counters.reads == 2 * len(swap.plan.streamed)


def test_refusals(shelf: Shelf) -> None:
    device = torch.device("cpu")
    with opened("disk", "mini", device, ARGS, shelf=shelf) as (_, swap):
        for wrong in (0, -1, True, 1.5):
            expect_refusal(lambda wrong=wrong: swap.ends_after(wrong), ArgsError, "1 or more")
    expect_refusal(lambda: swap.ends_after(1), StateError, "is closed")
