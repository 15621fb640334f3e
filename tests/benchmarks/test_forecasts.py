"""The README's forecasts are those that the command gives today."""

import json
import os
import shlex

import pytest
from typer.testing import CliRunner

from benchmarks.forecasts.tell import README, line
from benchmarks.forecasts.what import ROWS, Row
from blockswap.cli.app import app
from blockswap.units import format_bytes


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.card} {row.model} {row.clip[1]}p")
def test_a_row_of_the_readme_is_reproducible(row: Row) -> None:
    assert line(row) in README.read_text()


@pytest.mark.slow
def test_the_command_of_a_row_gives_its_figures() -> None:
    row = ROWS[1]
    result = CliRunner().invoke(app, [*shlex.split(row.command)[1:], "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert f"| {told['blocks_to_swap']} of 40 blocks | " in line(row)
    assert f"| {format_bytes(told['plan']['peak_bytes'])} | " in line(row)


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("BLOCKSWAP_PIECES") != "all", reason="minutes each: make test-pieces runs it"
)
@pytest.mark.parametrize(
    ("card", "frames", "said"),
    [
        ("RTX 4060", 209, "hold up to 209 frames on an 8 GB card (RTX 4060)"),
        ("RTX 3060 12GB", 345, "345 on a 12 GB one\n(RTX 3060 12GB)"),
        ("RTX 4080", 477, "477 on one of 16 GB (RTX 4080)"),
    ],
)
def test_the_largest_clip_of_a_card_is_what_its_command_says(
    card: str, frames: int, said: str
) -> None:
    assert said in README.read_text()
    row = Row(card, "wan2.2-t2v-a14b", (1280, 720, 961))
    result = CliRunner().invoke(app, shlex.split(row.command)[1:])
    assert result.exit_code != 0
    assert f"1280x720 with {frames} frames" in " ".join(result.output.split())
