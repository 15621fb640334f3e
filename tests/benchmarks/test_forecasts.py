"""The README's forecasts are those that the command gives today."""

import json
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
