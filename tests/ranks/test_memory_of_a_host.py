"""Host memory of four ranks: the model once, while it is opened, run and closed; what is read.

Proportional set size counts a shared page once over all processes.
"""

from typing import Any

import pytest
from fleet import run_fresh_ranks, values

GIVEN = ("meta", "weights")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each rank says of each scenario, by scenario."""
    read = {"folder": str(tmp_path_factory.mktemp("wide")),
            "args": {"blocks_to_swap": 20, "ram_budget": 0}}  # fmt: skip
    cases = [("read_once", read), *(("memory", {"gives": gives}) for gives in GIVEN)]
    ranks = values(run_fresh_ranks(4, "several", in_turn=cases))
    return dict(zip(("file", *GIVEN), zip(*ranks, strict=True), strict=True))


@pytest.mark.parametrize("gives", GIVEN)
def test_weights_are_in_memory_once_for_all_ranks(found: Any, gives: str) -> None:
    ranks = found[gives]
    weights = ranks[0]["weights"]
    slack = weights // 4  # what an interpreter takes for its first forward, four times
    for moment in ("opened", "closed"):
        total = sum(one[moment] for one in ranks)
        assert 0.95 * weights <= total < weights + slack, moment
    # Those of ranks that have weights of their own are let go once they are compared.
    opening, closing = ranks[0]["peaks"]
    assert opening < (weights + slack if gives == "meta" else weights // 2)
    assert closing < slack
    assert {one["segments"] for one in ranks} == {1}
    assert len({one["out"] for one in ranks}) == 1
    assert not [name for one in ranks for name in one["left"] if "blockswap" in name]


def test_a_block_is_read_once_for_all_ranks(found: Any) -> None:
    """By the system's count of each process; what comes ahead of a fourth forward is read, too."""
    ranks = found["file"]
    slabs, slots = ranks[0]["slabs"], ranks[0]["slots"]
    read = sum(one["forwards"] for one in ranks)
    assert 3 * slabs <= read <= 3 * slabs + slots + (1 << 20)
    assert sum(one["counted"] for one in ranks) <= read
    # Residents by one rank; each looks at its parts, to know whether the file is written to.
    assert sum(one["opening"] for one in ranks) < 2 * slabs
    assert sorted(one["opening"] for one in ranks)[-2] < slabs // 3
    assert len({out for one in ranks for out in one["outs"]}) == 1


def test_what_stays_of_a_file_is_in_memory_once_for_all_ranks(found: Any) -> None:
    """Each has its slots, all together two slabs to pass parts through; opening reads into one."""
    ranks = found["file"]
    slots, slack = 4 * ranks[0]["slots"], ranks[0]["slabs"] // 4
    slab = slots // 16
    held = sum(one["held"] for one in ranks)
    assert slots <= held < 4 * slab + slots + 2 * slab + slack
    opening, running, closing = ranks[0]["peaks"]
    # What stays, what it is read into, and what gathers are measured with.
    assert 4 * slab <= opening < (4 + 1 + 4 + 2) * slab + slack
    assert running < 4 * slab + slots + 2 * slab + slack
    assert closing < slack
    assert ranks[0]["left over"] < -slots // 2
    assert not [name for one in ranks for name in one["left"] if "blockswap" in name]
