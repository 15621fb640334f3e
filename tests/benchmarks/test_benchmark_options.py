"""Every benchmark says what it is, and measures and writes nothing then."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = sorted(path.parent.name for path in BENCHMARKS.glob("*/__main__.py"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--nonsense", 2)])
def test_options_are_read_before_anything_is_measured(
    name: str,
    option: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [name, option])
    above = str(BENCHMARKS.parents[1])  # pytest looks there, too; other checkouts may lie in it
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != above])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert ended.value.code == code
    told = capsys.readouterr()
    assert (told.out + told.err).startswith(f"usage: python -m benchmarks.{name} [-h]")


def test_the_table_of_commands_names_each() -> None:
    table = (BENCHMARKS / "README.md").read_text(encoding="utf-8").partition("## ")[0]
    assert [name for name in NAMES if f"`python -m benchmarks.{name}" not in table] == []
