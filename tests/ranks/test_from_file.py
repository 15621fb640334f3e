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
            assert one["gathers"] >= 3 * one["streamed"] > 0
            assert len(one["said"]) == 1
            assert "its part of a" in one["said"][0]
            assert not one["parted"]
        assert ["disk", "ram"] in [one["tiers"] for one in found] or device == "cpu"


def test_quantised_files_and_text_encoders_are_as_in_one_process(tmp_path: Path) -> None:
    for one in values(run_ranks(2, "as_stored", folder=str(tmp_path))):
        assert set(one.values()) == {True}, one


def test_hosts_with_one_rank_and_with_two(tmp_path: Path) -> None:
    for rank, found in enumerate(values(run_ranks(3, "unequal_hosts", folder=str(tmp_path)))):
        for name, one in found.items():
            assert one["equal"] == [True] * 2
            assert one["hosts"] == ["0", "1", "1"]
            assert (one["gathers"] >= 2 * 4) is (name == "file" and rank > 0)


def test_hosts_whose_files_differ_in_one_byte_are_told_so(tmp_path: Path) -> None:
    """Two ranks on each of two hosts; what is read at opening, and later, is compared whole."""
    for rank, found in enumerate(values(run_ranks(4, "other_copies", folder=str(tmp_path)))):
        *outs, said = found.pop("none")
        assert outs == [""] * 3
        assert "hold the same in 3 of 3 parts of blocks that were read" in said
        first, second, third, told = found.pop("in a block")
        assert (first or second).startswith("ModelError: blocks.2 has other values on the host of")
        assert third == f"StateError: {told}"
        for what, where in (("in what stays", "text_embedding"), ("in memory", "blocks.2")):
            (refusal,) = found.pop(what)
            assert refusal.startswith(f"ModelError: {where} has other values on the host of rank 2")
        (refusal,) = found.pop("loaded")
        assert "blocks.2 has other values on the host of rank 2 than on that of rank 0" in refusal
        assert not found, rank
