"""A kept probe with a figure that no probe writes: measured anew, never half believed."""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from blockswap.plan.inputs.machine import DiskFigures, Machine
from blockswap.probe.kept import kept_path, read_kept, write_kept
from blockswap.probe.values import DevicePart, DiskPart, Figure, Trial

HARDWARE = {"device": "toy"}
NOW = datetime(2026, 11, 28, tzinfo=timezone.utc)
WHEN = NOW.isoformat()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("BLOCKSWAP_CACHE", str(tmp_path))
    machine = Machine("toy", False, (("bfloat16", 1e12),), pinned_link=1e9, source="measured")
    figure = Figure("matmul bfloat16", 1e12, "FLOP", "how", 1.1)
    disk = DiskPart("/m", DiskFigures(1e9, 4, 8, True), (Trial("direct", 4, 8, 1e9),), (), WHEN)
    write_kept(HARDWARE, DevicePart(machine, (figure,), ("said",), WHEN), {"d": disk})
    assert read_kept(HARDWARE, now=NOW).device is not None
    return kept_path(HARDWARE)


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key], (*at, key))]
    if isinstance(value, list):
        return [leaf for key in range(len(value)) for leaf in leaves(value[key], (*at, key))]
    return [at]


@pytest.mark.parametrize("spoilt", [-1, -0.5, [], {}, "x", True, float("nan"), 10**30], ids=repr)
def test_no_wrong_value_in_any_place_is_believed(kept: Path, spoilt: Any) -> None:
    good = json.loads(kept.read_text())
    tried = 0
    for place in leaves(good):
        if place[0] in ("hardware", "format"):
            continue
        value = json.loads(kept.read_text())
        inside = value
        for key in place[:-1]:
            inside = inside[key]
        before = inside[place[-1]]
        fits = type(before) is type(spoilt) or (before is None and not isinstance(spoilt, bool))
        if (fits and spoilt in (True, "x")) or (before is None and spoilt == 10**30):
            continue  # another truth, or text, is as good as the one that is there
        inside[place[-1]] = spoilt
        kept.write_text(json.dumps(value))
        found = read_kept(HARDWARE, now=NOW)
        assert found.device is None, (place, spoilt)
        assert found.sentence is not None
        assert "probed anew" in found.sentence
        kept.write_text(json.dumps(good))
        tried += 1
    assert tried > 10
