"""`blockswap probe`."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blockswap.cli.app import app
from blockswap.probe import Limits, measure

runner = CliRunner()

SMALL = Limits(
    compute_seconds=0.03,
    link_seconds=0.02,
    disk_seconds=0.03,
    width=128,
    tokens=(16,),
    copy_bytes=2**16,
    scratch_bytes=2**18,
    readers=(2, 1),
    chunks=(2**14, 2**16),
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A probe that takes a moment, and the folder it measures."""
    monkeypatch.setattr(measure, "Limits", lambda: SMALL)
    monkeypatch.setenv("BLOCKSWAP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def test_every_figure_is_told_with_how_it_was_measured(quick: Path) -> None:
    result = runner.invoke(app, ["probe", "--device", "cpu", "--folder", str(quick)])
    assert result.exit_code == 0, result.output
    for word in (
        "host memory",
        "measured on 20",
        f"disk of        {quick}",
        "reads best",
        "matmul bfloat16",
        "attention float32",
        "FLOP/s  [16, 128] x [128, 128]; ",
        "device memory",
        "there is no link: blocks are used where they lie",
        "O_DIRECT" if hasattr(os, "preadv") else "os.preadv",
        "16.0 KiB",
    ):
        assert word in result.stdout
    assert result.stdout.count(" yes") == 1
    assert list(quick.iterdir()) == []


def test_the_second_time_the_figures_are_those_of_the_first(quick: Path) -> None:
    def figures(*options: str) -> dict[str, object]:
        arguments = ["probe", "--device", "cpu", "--folder", str(quick), "--json", *options]
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    first = figures()
    assert first["measured"] is True
    second = figures()
    assert second == first | {"measured": False}
    assert figures("--fresh")["measured"] is True


def test_a_folder_that_is_not_there_is_refused(quick: Path) -> None:
    result = runner.invoke(app, ["probe", "--device", "cpu", "--folder", str(quick / "no")])
    assert result.exit_code == 2
    assert "is not there: name a folder or a file on the disk that is meant" in result.stderr
    assert not result.stdout
    long = runner.invoke(app, ["probe", "--device", "cpu", "--folder", "x" * 300])
    assert (long.exit_code, long.stdout) == (2, "")


def test_a_device_that_is_not_there_is_refused(quick: Path) -> None:
    result = runner.invoke(app, ["probe", "--device", "warp9", "--folder", str(quick)])
    assert result.exit_code == 2
    assert 'device "warp9" was asked for' in result.stderr
