"""Ranks that bring blocks in parts: equal outputs, 1/N of the bytes, and what each does alone."""

import os
from pathlib import Path
from typing import Any

import pytest
from fleet import run_ranks, values


@pytest.mark.parametrize(("mode", "count"), [("sim-eager", 2), ("sim-lazy", 4)])
def test_each_rank_copies_its_part_and_computes_as_one_process(
    sim_module: Any, mode: str, count: int
) -> None:
    for found in values(run_ranks(count, "in_parts", device=mode)):
        for one in found:
            assert one["equal"] == [True] * 3
            assert one["said"]
            assert one["on_demand"] == 0
            assert one["gathers"] >= 3 * one["streamed"]
            # A slab of these models is a few kilobytes, of which the tail is a good part.
            assert one["planned"] < 1 / count + 0.2
            assert one["copied"] < 1.7 * one["planned"]  # with what is brought ahead at the end
            assert one["groups"] == 3  # the caller's, and two of ours however often one opens


@pytest.mark.parametrize("device", ["cpu", "sim-eager"])
def test_two_experts_share_slots_and_gathers(sim_module: Any, device: str, tmp_path: Path) -> None:
    found = values(run_ranks(2, "experts", device=device, folder=str(tmp_path)))
    for source, one in ((name, one) for rank in found for name, one in rank.items()):
        assert all(one["equal"])
        assert not one["said"]
        for number in range(2):
            if device == "cpu" and source != "in file":
                assert one["gathers"][number] == one["copied"][number] == 0
            else:
                assert one["gathers"][number] >= 3 * 4
                if device != "cpu":
                    assert one["planned"][number] < 0.7 * one["slabs"][number]
                assert one["copied"][number] >= 3 * one["planned"][number]


@pytest.mark.parametrize("store", ["memory", "file"])
def test_ranks_that_do_not_do_the_same_go_on_alone_and_say_so(
    sim_module: Any, store: str, tmp_path: Path
) -> None:
    before = sorted(os.listdir("/dev/shm"))
    path = str(tmp_path / "m.safetensors") if store == "file" else ""
    said, killed = run_ranks(2, "apart", path=path)
    assert killed.code == -9
    assert sorted(os.listdir("/dev/shm")) == before
    (here,) = values([said])
    for what, one in here.items():
        assert all(one["equal"]), what
        assert one["gathers"] > 0, what
        assert len(one["said"]) == one["warned"] == 1, what
        assert "rank 1" in one["said"][0], what
        assert "blocks." in one["said"][0], what
        assert one["waited"] < 20, what
    assert "brings another block than" in here["another order"]["said"][0]
    assert "did not bring its part of" in here["one forward less"]["said"][0]
    assert "within 2 s" in here["one forward less"]["said"][0]
    failed = here["raises" if path else "runs out of memory"]
    assert "blocks.3" in failed["said"][0]  # which comes late, or another one in its place
    assert "has ended" in here["closes"]["said"][0]
    assert "has ended" in here["is killed"]["said"][0]
