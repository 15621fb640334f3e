"""What the 14B benchmark makes of what it measured; the measuring itself is `make disk-14b`."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from benchmarks import disk_14b
from benchmarks.disk_14b_run import Clip
from benchmarks.shared.raw_read import CHUNK, Reader, block_spans
from benchmarks.shared.results import RESULTS
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import WanGeometry
from blockswap.synth import synth


@pytest.fixture
def told() -> dict[str, Any]:
    return dict(json.loads((RESULTS / "disk_14b.json").read_text())["told"])


def test_the_committed_report_is_that_of_the_committed_figures(told: dict[str, Any]) -> None:
    rows = disk_14b.rows_of(told)
    table = disk_14b.report(told, rows).partition("Opened in")[2]  # the machine is another's
    assert (RESULTS / "disk_14b.md").read_text().partition("Opened in")[2] == table
    assert disk_14b.misses(told, rows) == []
    assert told["streamed"] == 40


def test_each_missed_target_is_a_sentence(told: dict[str, Any]) -> None:
    told["opening"] = 10.5
    told["rows"][1]["forwards"] = [told["rows"][1]["forwards"][0] * 1.2] * 2
    missed = disk_14b.misses(told, disk_14b.rows_of(told))
    assert ["frames" in missed[0], "opening took 10.5 s" in missed[1]] == [True, True]


def test_the_bound_is_the_larger_of_read_and_compute() -> None:
    row = disk_14b.Row(Clip(1, 32, 32), forward=11.0, compute=5.0, read=10.0)
    assert (row.bound, row.over_bound) == (10.0, 1.1)


def test_a_disk_without_room_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk_14b.shutil, "disk_usage", lambda _: usage(0, 0, 1 << 30))
    with pytest.raises(SystemExit, match=r"has 1.0 GiB free and 27.9 GiB are needed: make room"):
        with disk_14b.checkpoint(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    assert disk_14b.shutil is shutil


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="the raw read is by O_DIRECT")
def test_the_raw_read_is_of_the_blocks_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    synth(WanGeometry(dim=64, ffn_dim=96, num_layers=3, num_heads=2, text_dim=24), path)
    checkpoint = open_checkpoint(path)
    blocks = [t for key, t in checkpoint.tensors.items() if key.startswith("blocks.")]
    reader, spans = Reader(path, 8 * CHUNK), block_spans(path)
    for tensor in blocks:
        end = tensor.offset + tensor.nbytes
        assert any(at <= tensor.offset and end <= at + nbytes for at, nbytes in spans)
    assert 0 <= reader.nbytes - sum(t.nbytes for t in blocks) < 3 * 2 * 4096
    assert reader.seconds(2) > 0
    stored = path.read_bytes()
    for (at, nbytes), kept in zip(spans, reader._ring, strict=False):
        assert kept[:nbytes] == stored[at : at + nbytes]
    assert reader.discarding_seconds() > 0


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="the raw read is by O_DIRECT")
def test_a_raw_read_that_fails_is_no_fast_one(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    synth(WanGeometry(dim=64, ffn_dim=96, num_layers=3, num_heads=2, text_dim=24), path)
    reader = Reader(path, 8 * CHUNK)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(EOFError, match="bytes came from byte"):
        reader.seconds(2)
