"""LoRAs on several ranks: all have the same, or a sentence says why not and none is changed."""

from pathlib import Path
from typing import Any

import pytest
from fleet import run_ranks, values

SHARED, IN_FILE = {"blocks": "1-3"}, {"blocks": "1-3", "ram_budget": 0}


@pytest.mark.parametrize("args", [SHARED, IN_FILE], ids=["shared", "in the file"])
@pytest.mark.parametrize("device", ["cpu", "sim-lazy"])
def test_loras_change_on_all_ranks_or_on_none(
    sim_module: Any, device: str, args: Any, tmp_path: Path
) -> None:
    """Strengths and files; refused where ranks ask for others, and where one of them fails."""
    path = str(tmp_path / "model.safetensors")
    for one in values(run_ranks(2, "changed_loras", path=path, device=device, args=args)):
        assert all(one["equal"])
        assert one["changed"] == 4
        assert one["none"]
        assert one["told"]
        assert all(one["as before"])
        strengths, number, missing, foreign, *gone = one["refused"]
        assert "at 2 and rank 0" in strengths
        assert "1 LoRAs and rank 0 0" in number
        assert "is not there" in missing
        assert "no adapter" in foreign
        assert all("the disk is gone" in said for said in gone)


@pytest.mark.parametrize("args", [SHARED, IN_FILE], ids=["shared", "in the file"])
def test_loras_that_one_rank_changes_are_a_sentence_and_change_nothing(
    args: Any, tmp_path: Path
) -> None:
    path = str(tmp_path / "model.safetensors")
    first, second = values(run_ranks(2, "changed_by_one", path=path, args=args))
    assert "one of them ended or did not come within 2 s" in first["said"]
    assert all(first["same"] + second["same"])
    assert max(first["waited"], second["waited"]) < 20


def test_experts_have_loras_of_their_own(tmp_path: Path) -> None:
    for one in values(run_ranks(2, "experts_with_loras", path=str(tmp_path / "m.safetensors"))):
        assert all(one), one


@pytest.mark.parametrize("budget", [{}, {"ram_budget": 0}], ids=["shared", "in the file"])
def test_what_is_kept_in_fp32_is_not_rounded(budget: Any, tmp_path: Path) -> None:
    """A LoRA on a norm of a file in 16 bits: as in one process, or refused where it rests in 16."""
    args = {"blocks": "0-1", **budget}
    for found in values(run_ranks(2, "of_what_is_kept", folder=str(tmp_path), args=args)):
        refused = found.pop("later, refused", "")
        assert bool(refused) is not bool(budget)
        assert found == {
            "at opening": [True, True],
            "later": [True] if refused else [True, True],
            "no longer": [True, True],
        }
        assert not refused or "rests as bfloat16 in memory that ranks share" in refused
