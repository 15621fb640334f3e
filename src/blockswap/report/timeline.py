"""The picture of the last forwards: colours, labels, layout, and how short a wait is drawn.

8 of 10 blocks streamed · ...              title: the summary in a line
[] resident  [] streamed  [] waiting ...   legend
            forward 3        forward 4
compute     |0|1|2|3|4|5|6|7||0|1|2|3|..
copy engine  |2|3| |4|5|  |6|7| ..
disk reads  |3|  |5|   |7| ..
            +----+----+----+----+----+     seconds from the first forward shown
            0    20   40   60   80   100 ms
"""

import math
import os
from dataclasses import dataclass

from ..events import Measured
from ..plan.swap_plan import SwapPlan
from .canvas import PAGE_WIDTH, Box, Canvas, new_canvas, round_step
from .lanes import Bar, BarKind, Lane, forward_starts, lanes_of, window_of
from .summary import Summary, summarise
from .words import count_of, say_bytes, say_rate, say_seconds

# Told apart by lightness as well as by hue, so also without colour vision (after Okabe and Ito,
# "Color Universal Design").
_COLOURS: dict[BarKind, str] = {
    "resident": "#a8c5e2",
    "streamed": "#1f5fa8",
    "waiting": "#d4152a",
    "copy": "#009e73",
    "read": "#f0b429",
}
_INK, _PALE_INK, _RULE, _BAND = "#1b1f24", "#5c6670", "#d5dae0", "#f4f6f8"
_ON_BAR: dict[BarKind, str] = {
    "resident": _INK,
    "streamed": "#ffffff",
    "waiting": "#ffffff",
    "copy": "#ffffff",
    "read": _INK,
}
_LEGEND: tuple[tuple[BarKind, str], ...] = (
    ("resident", "resident block computes"),
    ("streamed", "streamed block computes"),
    ("waiting", "compute waits for a block"),
    ("copy", "copy into a slot"),
    ("read", "read from disk"),
)

_MARGIN, _LEFT, _RIGHT = 32.0, 150.0, PAGE_WIDTH - 40.0
_TITLE_Y, _SUBTITLE_Y, _LEGEND_Y, _FORWARD_Y, _LANES_TOP = 38.0, 70.0, 106.0, 144.0, 162.0
_COMPUTE_HEIGHT, _ROW_HEIGHT, _ROW_GAP, _LANE_GAP, _AXIS_HEIGHT = 64.0, 40.0, 4.0, 20.0, 62.0
_LEAST_WAIT = 0.25  # points
_LABEL_SIZES, _LABEL_AIR = (17.0, 14.0, 12.0, 10.5), 3.0


def draw_timeline(
    plan: SwapPlan,
    measured: Measured,
    path: str | os.PathLike[str],
    *,
    forwards: int = 2,
    width: int = 1600,
    heading: str | None = None,
) -> None:
    """Draws the last `forwards` forwards on record as a PNG `width` pixels wide.

    Bars are in true proportion: a wait shorter than a quarter of a pixel is not drawn, so that
    many tiny ones do not look like a few long ones. Where no visit was timed the picture says so.
    `heading` stands on top instead of the status line. Raises OutputError where the file cannot be
    written or Pillow is not there.
    """
    summary = summarise(plan, measured)
    heading = heading or summary.status_line()
    window = window_of(measured, forwards)
    if window is None:
        canvas = new_canvas(width, _LANES_TOP)
        _draw_head(canvas, heading, "no visit of a block was timed, so there is nothing to draw")
        canvas.save(path)
        return
    lanes = lanes_of(measured, window)
    bottom = _LANES_TOP + sum(_height(lane) + _LANE_GAP for lane in lanes)
    canvas = new_canvas(width, bottom + _AXIS_HEIGHT)
    axis = _Axis(window[0], max(window[1], window[0] + 1e-9))
    starts = forward_starts(measured, forwards)
    shown = f"{count_of(len(starts), 'forward')} shown, {say_seconds(window[1] - window[0])}"
    _draw_head(canvas, heading, f"{shown} · {_subtitle(summary)}")
    _draw_legend(canvas, lanes)
    _draw_forwards(canvas, axis, starts, bottom)
    _draw_axis(canvas, axis, bottom)
    top = _LANES_TOP
    for lane in lanes:
        _draw_lane(canvas, axis, lane, top)
        top += _height(lane) + _LANE_GAP
    canvas.save(path)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Seconds to points, left to right."""

    low: float
    high: float

    def x(self, seconds: float) -> float:
        return _LEFT + (seconds - self.low) / (self.high - self.low) * (_RIGHT - _LEFT)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        """(second, label) at round distances: 1, 2 or 5 times a power of ten, 6 to 14 of them."""
        span = self.high - self.low
        step = round_step(span / 6)
        unit, factor = ("s", 1.0) if span >= 2.0 else ("ms", 1e3)
        decimals = max(0, -math.floor(math.log10(step * factor) + 1e-9))
        return tuple(
            (self.low + n * step, f"{n * step * factor:.{decimals}f} {unit}")
            for n in range(math.floor(span / step + 1e-9) + 1)
        )


def _height(lane: Lane) -> float:
    row = _COMPUTE_HEIGHT if lane.title == "compute" else _ROW_HEIGHT
    return len(lane.rows) * row + (len(lane.rows) - 1) * _ROW_GAP


def _subtitle(summary: Summary) -> str:
    place, traffic = summary.placement, summary.traffic
    words = [place.device]
    if place.slots:
        words.append(f"{count_of(place.slots, 'slot')} of {say_bytes(place.slot_bytes)}")
    words.append(f"prefetch {place.prefetch}")
    if traffic.copy_bytes_per_second is not None:
        words.append(f"copies {say_rate(traffic.copy_bytes_per_second)}")
    if traffic.read_bytes_per_second is not None:
        words.append(f"reads {say_rate(traffic.read_bytes_per_second)}")
    words.append(f"transfer hidden {say_seconds(summary.times.hidden_seconds)}")
    words.append(f"exposed {say_seconds(summary.times.exposed_seconds)}")
    return " · ".join(words)


def _draw_head(canvas: Canvas, heading: str, subtitle: str) -> None:
    canvas.write((_MARGIN, _TITLE_Y), heading, size=28, colour=_INK)
    canvas.write((_MARGIN, _SUBTITLE_Y), subtitle, size=17, colour=_PALE_INK)


def _draw_legend(canvas: Canvas, lanes: tuple[Lane, ...]) -> None:
    shown = {bar.kind for lane in lanes for row in lane.rows for bar in row} | {"waiting"}
    x = _MARGIN
    for kind, words in _LEGEND:
        if kind in shown:
            canvas.fill(Box(x, _LEGEND_Y - 8, x + 16, _LEGEND_Y + 8), _COLOURS[kind])
            canvas.write((x + 24, _LEGEND_Y), words, size=17, colour=_INK)
            x += 24 + canvas.width_of(words, 17) + 32


def _draw_forwards(
    canvas: Canvas, axis: _Axis, starts: tuple[tuple[int, float], ...], bottom: float
) -> None:
    ends = [start for _, start in starts[1:]] + [axis.high]
    for number, ((forward, start), end) in enumerate(zip(starts, ends, strict=True)):
        left, right = axis.x(start), axis.x(end)
        if number % 2 == 0:
            canvas.fill(Box(left, _FORWARD_Y - 13, right, bottom), _BAND)
        name = f"forward {forward}"
        if canvas.width_of(name, 16) <= right - left:
            place = ((left + right) / 2, _FORWARD_Y)
            canvas.write(place, name, size=16, colour=_PALE_INK, anchor="mm")


def _draw_axis(canvas: Canvas, axis: _Axis, bottom: float) -> None:
    for seconds, label in axis.ticks():
        x = axis.x(seconds)
        canvas.fill(Box(x - 0.5, _LANES_TOP - 4, x + 0.5, bottom + 6), _RULE)
        canvas.write((x, bottom + 22), label, size=16, colour=_PALE_INK, anchor="mm")
    canvas.fill(Box(_LEFT, bottom - 0.5, _RIGHT, bottom + 0.5), _PALE_INK)


def _draw_lane(canvas: Canvas, axis: _Axis, lane: Lane, top: float) -> None:
    height = _COMPUTE_HEIGHT if lane.title == "compute" else _ROW_HEIGHT
    middle = top + _height(lane) / 2
    canvas.write((_LEFT - 14, middle), lane.title, size=18, colour=_INK, anchor="rm")
    size = _label_size(canvas, axis, lane)
    for row in lane.rows:
        for bar in row:
            box = Box(axis.x(bar.start), top, axis.x(bar.end), top + height)
            if bar.kind != "waiting":
                _draw_bar(canvas, bar, box, size)
            elif box.right - box.left >= _LEAST_WAIT:
                canvas.fill(box, _COLOURS["waiting"])
        top += height + _ROW_GAP


def _label_size(canvas: Canvas, axis: _Axis, lane: Lane) -> float:
    """One size for all labels of a lane: the largest at which most of them fit."""
    bars = [bar for row in lane.rows for bar in row if bar.kind != "waiting"]
    for size in _LABEL_SIZES:
        fitting = sum(
            _fits(canvas, bar.label, size, axis.x(bar.end) - axis.x(bar.start)) for bar in bars
        )
        if fitting >= 0.75 * len(bars):
            return size
    return _LABEL_SIZES[-1]


def _fits(canvas: Canvas, label: str, size: float, width: float) -> bool:
    return canvas.width_of(label, size) + _LABEL_AIR <= width


def _draw_bar(canvas: Canvas, bar: Bar, box: Box, size: float) -> None:
    # A hair of the page between neighbours, where there is room for it.
    gap = 1.0 if box.right - box.left > 4.0 else 0.0
    canvas.fill(Box(box.left, box.top, box.right - gap, box.bottom), _COLOURS[bar.kind])
    if _fits(canvas, bar.label, size, box.right - box.left):
        canvas.write(box.middle, bar.label, size=size, colour=_ON_BAR[bar.kind], anchor="mm")
