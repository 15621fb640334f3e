"""Blocks that stay in the file, on several ranks: equal outputs, and each byte read once a host."""

from pathlib import Path
from typing import Any

import pytest
from fleet import run_ranks, values


@pytest.mark.parametrize(("device", "count"), [("cpu", 2), ("sim-lazy", 2)])
def test_each_rank_reads_its_part_and_computes_as_one_process(
    sim_module: Any, device: str, count: int, tmp_path: Path
) -> None:
    for found in values(run_ranks(count, "from_file", device=device, folder=str(tmp_path))):
        for one in found:
            assert one["equal"] == [True] * 3
            assert one["gathers"] >= 3 * one["in file"] > 0
            assert len(one["said"]) == 1
            assert "reads its part of" in one["said"][0]
        assert ["disk", "ram"] in [one["tiers"] for one in found] or device == "cpu"


def test_a_block_is_read_once_for_all_ranks(tmp_path: Path) -> None:
    """By the system's count of each process; what comes ahead of a fourth forward is read, too."""
    args = {"blocks_to_swap": 20, "ram_budget": 0}
    found = values(run_ranks(4, "read_once", folder=str(tmp_path), args=args))
    slabs, slots = found[0]["slabs"], found[0]["slots"]
    read = sum(one["forwards"] for one in found)
    assert 3 * slabs <= read <= 3 * slabs + slots + (1 << 20)
    assert sum(one["counted"] for one in found) <= read
    # Residents by one rank; each looks at its parts, to know whether the file is written to.
    assert sum(one["opening"] for one in found) < 2 * slabs
    assert sorted(one["opening"] for one in found)[-2] < slabs // 3
    assert len({out for one in found for out in one["outs"]}) == 1
    # What stays lies there once; each has its slots, all together two slabs to pass parts through.
    slab = slots // 4
    held = sum(one["held"] for one in found)
    assert 4 * slots <= held < 4 * slab + 4 * slots + 2 * slab + slabs // 4
    assert not [name for one in found for name in one["left"] if "blockswap" in name]


def test_quantised_files_and_text_encoders_are_as_in_one_process(tmp_path: Path) -> None:
    for one in values(run_ranks(2, "as_stored", folder=str(tmp_path))):
        assert set(one.values()) == {True}, one


def test_hosts_with_one_rank_and_with_two(tmp_path: Path) -> None:
    for rank, found in enumerate(values(run_ranks(3, "unequal_hosts", folder=str(tmp_path)))):
        for name, one in found.items():
            assert one["equal"] == [True] * 2
            assert one["hosts"] == ["0", "1", "1"]
            assert (one["gathers"] >= 2 * 4) is (name == "file" and rank > 0)
