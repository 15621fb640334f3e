"""What the benchmarks share: the chart and the raw read."""

from pathlib import Path

from PIL import Image

from benchmarks.shared.chart import Line, Panel, draw


def test_the_chart_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "chart.png"
    lines = [Line("ours", [(0.1, 1.0), (10.0, 1.0)]), Line("peer", [(0.1, 1.2), (10.0, 3.0)])]
    draw([Panel("all", lines), Panel("half", lines)], file, x_label="ratio", y_label="over")
    with Image.open(file) as image:
        counted = image.convert("RGB").getcolors(1 << 24)
    colours = {colour for _, colour in counted or ()}
    assert {(0, 90, 181), (100, 160, 220)} <= colours
