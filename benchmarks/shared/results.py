"""Owns where results are kept and in what form: figures as JSON, a report of them beside it."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"


def write(name: str, data: dict[str, Any], report: str) -> None:
    """Writes `results/NAME.json` and `results/NAME.md`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(report)


def kept_rows(name: str) -> list[dict[str, Any]]:
    """The rows of the last result of that name; none where there is no result."""
    file = RESULTS / f"{name}.json"
    return list(json.loads(file.read_text())["rows"]) if file.exists() else []
