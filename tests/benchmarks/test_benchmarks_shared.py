"""What the benchmarks share: the chart and the raw read."""

import os
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.shared.chart import Line, Panel, draw
from benchmarks.shared.raw_read import CHUNK, Reader, block_spans
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import WanGeometry
from blockswap.synth import synth


def test_the_chart_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "chart.png"
    lines = [Line("ours", [(0.1, 1.0), (10.0, 1.0)]), Line("peer", [(0.1, 1.2), (10.0, 3.0)])]
    draw([Panel("all", lines), Panel("half", lines)], file, x_label="ratio", y_label="over")
    with Image.open(file) as image:
        counted = image.convert("RGB").getcolors(1 << 24)
    colours = {colour for _, colour in counted or ()}
    assert {(0, 90, 181), (100, 160, 220)} <= colours


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A tiny checkpoint that is there to be read raw."""
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("the raw read is by O_DIRECT")
    file = tmp_path / "tiny.safetensors"
    synth(WanGeometry(dim=64, ffn_dim=96, num_layers=3, num_heads=2, text_dim=24), file)
    return file


def test_the_raw_read_is_of_the_blocks_and_nothing_else(path: Path) -> None:
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


def test_a_raw_read_that_fails_is_no_fast_one(path: Path) -> None:
    reader = Reader(path, 8 * CHUNK)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(EOFError, match="bytes came from byte"):
        reader.seconds(2)
