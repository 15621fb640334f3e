"""The command line under torchrun: one table of all ranks, printed by one of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fleet import HERE, environment
from typer.testing import CliRunner

from blockswap.cli.app import app


def test_probe_plan_and_demo_under_torchrun(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         "--local-addr", "127.0.0.1", str(HERE / "commands.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**environment(), "BLOCKSWAP_CACHE": str(tmp_path)},
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    said = run.stdout
    # Measured and planned, and what the demo did: each once, with a row for each rank.
    assert said.count("link, all at once") == 2
    assert said.count("equal to the last bit") == 1
    for rank in (0, 1):
        rows = [line for line in said.splitlines() if line.split()[:3] == [str(rank), "0", "cpu"]]
        assert len(rows) == 3, said
    assert "at most in parts" in said
    assert said.count("reads its part of a block that stays in the file") == 3  # plan, demo's two
    assert (tmp_path / "demo" / "demo.mp4").exists()


def _planned(*options: str) -> Any:
    run = CliRunner().invoke(app, ["plan", "--model", "wan2.1-t2v-1.3b", "--size", "832x480",
                                   "--frames", "17", *options])  # fmt: skip
    return run.exit_code, " ".join(run.output.split())


def test_a_plan_for_ranks_that_are_not_at_hand() -> None:
    """Compute is small and the link slow: N ranks bring a block in an N-th of the time."""
    card = ["--gpu", "RTX 4090", "--link", "pcie3x1", "--blocks-to-swap", "30"]
    _, said = _planned(*card, "--ranks", "2", "--gather", "100GB")
    assert "in parts is faster" in said
    assert "copies its part of a streamed block" in said
    assert "text encoder of 2 ranks" in said
    timings = [json.loads(_planned(*how, "--json")[1])["plan"]["timing"]
               for how in (card, [*card, "--ranks", "2", "--gather", "100GB"])]  # fmt: skip
    assert timings[0]["copy_seconds"] == pytest.approx(2 * timings[1]["copy_seconds"])
    assert timings[0]["step_seconds"] > 1.5 * timings[1]["step_seconds"]
    _, slow = _planned(*card, "--ranks", "2", "--gather", "100MB")
    assert "by each rank itself is faster" in slow
    assert "brings all of every streamed block" in slow


def test_ranks_that_make_no_sense_are_refused() -> None:
    for options, said in (
        (["--gather", "1GB"], "give --ranks too"),
        (["--ranks", "0", "--gpu", "RTX 4090"], "is no count"),
        (["--ranks", "2", "--gather", "0", "--gpu", "RTX 4090"], "needs the rates"),
    ):
        code, output = _planned(*options)
        assert code == 2
        assert said in output
