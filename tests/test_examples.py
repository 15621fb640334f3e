"""Every example and every blockswap command of the README runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
# `$ blockswap ...` lines of the README; the demo has tests of its own.
COMMANDS = [c for c in re.findall(r"^\$ (blockswap .*)$", README, re.M) if " demo" not in c]


def run(command, cwd):
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, check=True
    ).stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_and_reports(example, tmp_path):
    assert "blocks streamed" in run([sys.executable, str(example)], tmp_path)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs_from_its_first_cell_to_its_last(notebook, tmp_path):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n\n".join(code), encoding="utf-8")
    told = run([sys.executable, "cells.py"], tmp_path)
    assert "fits: " in told
    assert "transformer: " in told
    assert "(1, 5, 32, 32, 3)" in told
    assert (tmp_path / "ball.mp4").exists()


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 2


@pytest.mark.slow
def test_readme_commands_run_one_after_the_other(tmp_path):
    (tmp_path / "models").mkdir()
    for command in COMMANDS:
        # As a shell whose home is here would read it.
        words = shlex.split(command.split("#")[0].replace("~/", f"{tmp_path}/"))
        assert run([sys.executable, "-m", "blockswap", *words[1:]], tmp_path)


def test_the_folders_that_the_makefile_names_are_there():
    named = re.findall(r"\btests/[\w/.]+", (ROOT / "Makefile").read_text(encoding="utf-8"))
    # Build folders are made by what they are named for.
    missing = [name for name in named if "/.build" not in name and not (ROOT / name).exists()]
    assert named
    assert not missing
