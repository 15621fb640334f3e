"""Ranks that were given something else, leave or are killed: what the others say, and do then."""

import os
from pathlib import Path
from typing import Any

import pytest
from fleet import run_ranks, values

# What rank 1 asked for else, and what both say then; blocks in the file.
SAID = {
    "file": "m.safetensors, which is no link to it but a file of its own",
    "copy": "m.safetensors, which is no link to it but a file of its own",
    "dtype": "rank 1 has another model than rank 0 (text_embedding differs)",
    "config": "the model of rank 1 is configured with eps='1e-6', that of rank 0 with '1e-5'",
    "count": "blocks.1 is resident in the plan of rank 1 and disk in that of rank 0",
    "missing": "/none.safetensors is not there",
    "args": "Invalid range: '3-1'",
    "twice": "this MiniWan is swapped already",
    "call": "rank 1 was to check what was asked and rank 0 to open the checkpoint",
    "open one": "still equal: True",
}


def test_ranks_that_ask_for_something_else_are_told_so_on_all(tmp_path: Path) -> None:
    for found in values(run_ranks(2, "other_requests", path=str(tmp_path / "m.safetensors"))):
        for tier, said in found.items():
            for what, sentence in said.items():
                # Weights in memory are every rank's, whatever of them it streams.
                own = "equal: True" if (what, tier) == ("count", "memory") else SAID[what]
                assert own in sentence, (tier, what)
            assert said.keys() == SAID.keys()


def test_a_rank_that_leaves_in_any_way_lets_the_other_go_on(tmp_path: Path) -> None:
    for rank, found in enumerate(values(run_ranks(2, "leaving", path=str(tmp_path / "m")))):
        assert found.pop("segments") == [0]
        for how, (equal, gathers, said) in found.items():
            assert equal, how
            assert gathers >= 4, how
            assert said == (1 - rank), how


def test_meshes_and_groups_of_any_shape(tmp_path: Path) -> None:
    """Of one rank, of two out of three, where one has a group more, and after all are destroyed."""
    for rank, found in enumerate(values(run_ranks(3, "odd_groups", path=str(tmp_path / "m")))):
        assert len(found) == (5 if rank == 1 else 7)
        assert all(found.values()), found


EVERY_POINT = os.environ.get("BLOCKSWAP_EVERY_POINT")


@pytest.mark.parametrize("step", [*(range(1, 48) if EVERY_POINT else (9, 30)), "closing"])
def test_a_rank_killed_in_opening_or_closing_is_a_sentence(step: Any, tmp_path: Path) -> None:
    """With blocks in the file; at some of the agreements of an opening, which has 47."""
    before = sorted(os.listdir("/dev/shm"))
    when, number = ("closing", 0) if step == "closing" else ("opening", step)
    path = str(tmp_path / "m.safetensors")
    other, killed = run_ranks(2, "killed_in_file", path=path, when=when, step=number)
    assert killed.code == -9
    assert sorted(os.listdir("/dev/shm")) == before
    (said,) = values([other])
    if when == "closing":
        assert said.startswith("True: rank 1 has ended and does not bring its part of blocks.")
    else:
        assert "one of them ended or did not come within 3 s" in said


def test_ranks_gather_again_after_one_of_them_saw_a_gather_fail(sim_module: Any) -> None:
    for one in values(run_ranks(2, "after_a_failed_gather")):
        assert one["equal"] == [True, True]
        assert min(one["gathers"]) >= 4
