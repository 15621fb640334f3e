"""A small line chart on two logarithmic axes, drawn with Pillow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 760, 520, 70, 60, 70, 330
INK, GRID = (30, 30, 30), (225, 225, 225)
COLOURS = (
    (0, 90, 181),
    (100, 160, 220),
    (220, 50, 32),
    (230, 140, 0),
    (120, 94, 160),
    (0, 140, 110),
    (150, 110, 60),
    (200, 80, 150),
    (90, 90, 90),
    (0, 0, 0),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A named curve; points are (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: both axes logarithmic, y from 1 to `top`."""

    title: str
    lines: Sequence[Line]
    top: float = 8.0


def draw(panels: Sequence[Panel], path: Path, *, x_label: str, y_label: str) -> None:
    """Draws the panels side by side with one legend, as a PNG."""
    image = Image.new("RGB", (WIDTH * len(panels) + LEGEND, HEIGHT), "white")
    canvas = ImageDraw.Draw(image)
    for number, panel in enumerate(panels):
        _draw_panel(canvas, panel, WIDTH * number, (x_label, y_label))
    _draw_legend(canvas, panels[0].lines, WIDTH * len(panels))
    image.save(path)


def _draw_panel(
    canvas: ImageDraw.ImageDraw, panel: Panel, left: int, labels: tuple[str, str]
) -> None:
    xs = [x for line in panel.lines for x, _ in line.points]
    low, high = min(xs), max(*xs, 2 * min(xs))

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / low) / math.log(high / low)
        up = math.log(max(y, 0.97) / 0.97) / math.log(panel.top / 0.97)
        return left + LEFT + across * (WIDTH - LEFT - 30), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    canvas.text((left + LEFT, 18), panel.title, fill=INK, font=_font(20))
    for y in (1, 1.1, 1.25, 1.5, 2, 3, 4, 6, 8):
        if y <= panel.top:
            canvas.line([place(low, y), place(high, y)], fill=GRID)
            canvas.text((left + 24, place(low, y)[1] - 8), f"{y:g}", fill=INK, font=_font(14))
    for x in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        if not low <= x <= high:
            continue
        canvas.line([place(x, 0.97), place(x, panel.top)], fill=GRID)
        at = place(x, 0.97)
        canvas.text((at[0] - 8, at[1] + 6), f"{x:g}", fill=INK, font=_font(14))
    canvas.text((left + LEFT, HEIGHT - 34), labels[0], fill=INK, font=_font(15))
    canvas.text((left + LEFT, 42), labels[1], fill=INK, font=_font(14))
    for line, colour in reversed(list(zip(panel.lines, COLOURS, strict=False))):
        points = [place(x, y) for x, y in line.points]
        canvas.line(points, fill=colour, width=4 if colour == COLOURS[0] else 2)


def _draw_legend(canvas: ImageDraw.ImageDraw, lines: Sequence[Line], left: int) -> None:
    for number, (line, colour) in enumerate(zip(lines, COLOURS, strict=False)):
        y = TOP + 28 * number
        canvas.line([(left, y + 9), (left + 28, y + 9)], fill=colour, width=4)
        canvas.text((left + 36, y), line.name, fill=INK, font=_font(15))


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
