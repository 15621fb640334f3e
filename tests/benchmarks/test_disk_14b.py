"""What the 14B benchmark makes of what it measured; the measuring itself is `make disk-14b`."""

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from benchmarks.disk_14b import run
from benchmarks.disk_14b.tell import report
from benchmarks.disk_14b.what import Clip, Row, misses, rows_of
from benchmarks.shared import bounded_memory
from benchmarks.shared.results import RESULTS


@pytest.fixture
def told() -> dict[str, Any]:
    return dict(json.loads((RESULTS / "disk_14b.json").read_text())["told"])


def test_the_committed_report_is_that_of_the_committed_figures(told: dict[str, Any]) -> None:
    rows = rows_of(told)
    table = report(told, rows).partition("Opened in")[2]  # the machine is another's
    assert (RESULTS / "disk_14b.md").read_text().partition("Opened in")[2] == table
    assert misses(told, rows) == []
    assert told["streamed"] == 40


def test_each_missed_target_is_a_sentence(told: dict[str, Any]) -> None:
    told["opening"] = 10.5
    told["rows"][1]["forwards"] = [told["rows"][1]["forwards"][0] * 1.2] * 2
    missed = misses(told, rows_of(told))
    assert ["frames" in missed[0], "opening took 10.5 s" in missed[1]] == [True, True]


def test_the_bound_is_the_larger_of_read_and_compute() -> None:
    row = Row(Clip(1, 32, 32), forward=11.0, compute=5.0, read=10.0)
    assert (row.bound, row.over_bound) == (10.0, 1.1)


def test_a_disk_without_room_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(bounded_memory.shutil, "disk_usage", lambda _: usage(0, 0, 1 << 30))
    with pytest.raises(SystemExit, match=r"has 1.0 GiB free and 27.9 GiB are needed: make room"):
        with run.checkpoint(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    assert bounded_memory.shutil is shutil
