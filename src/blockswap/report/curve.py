"""The picture of step time against memory budget: its axes, ticks and staircase."""

import math
import os
from dataclasses import dataclass

from ..units import GIB, format_bytes, format_seconds
from .canvas import PAGE_WIDTH, Box, Canvas, new_canvas, round_step

_INK, _PALE_INK, _RULE, _LINE = "#1b1f24", "#5c6670", "#d5dae0", "#1f5fa8"
_HEIGHT = 720.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 150.0, PAGE_WIDTH - 60.0, 110.0, 630.0


@dataclass(frozen=True, slots=True)
class Dot:
    """One budget in bytes, the seconds of a step with it, and the units streamed."""

    budget_bytes: int
    step_seconds: float
    streamed: int


@dataclass(frozen=True, slots=True)
class Curve:
    """Dots by rising budget."""

    title: str
    dots: tuple[Dot, ...]


def draw_curve(curve: Curve, path: str | os.PathLike[str], *, width: int = 1600) -> None:
    """Draws the curve as a PNG, seconds from zero. Raises OutputError."""
    canvas = new_canvas(width, _HEIGHT)
    canvas.write((_LEFT, 36), curve.title, size=26, colour=_INK)
    first, last = curve.dots[0], curve.dots[-1]
    said = f"{format_bytes(first.budget_bytes)}: {first.streamed} units streamed, "
    said += f"{format_seconds(first.step_seconds)} a forward;  {format_bytes(last.budget_bytes)}: "
    said += f"{last.streamed} streamed, {format_seconds(last.step_seconds)}"
    canvas.write((_LEFT, 70), said, size=17, colour=_PALE_INK)
    frame = _Frame(curve.dots)
    _draw_axes(canvas, frame)
    for dot, following in zip(curve.dots, curve.dots[1:], strict=False):
        _draw_step(canvas, frame, dot, following)
    canvas.save(path)


class _Frame:
    """Bytes and seconds to points."""

    def __init__(self, dots: tuple[Dot, ...]) -> None:
        self.low, self.high = (
            dots[0].budget_bytes,
            max(dots[-1].budget_bytes, dots[0].budget_bytes + 1),
        )
        self.seconds = max(dot.step_seconds for dot in dots) * 1.08 or 1.0

    def x(self, nbytes: float) -> float:
        return _LEFT + (nbytes - self.low) / (self.high - self.low) * (_RIGHT - _LEFT)

    def y(self, seconds: float) -> float:
        return _BOTTOM - seconds / self.seconds * (_BOTTOM - _TOP)


def _draw_axes(canvas: Canvas, frame: _Frame) -> None:
    step = round_step(frame.seconds / 6)
    for number in range(int(frame.seconds / step) + 1):
        y = frame.y(number * step)
        canvas.fill(Box(_LEFT, y - 0.5, _RIGHT, y + 0.5), _RULE)
        canvas.write(
            (_LEFT - 12, y), format_seconds(number * step), size=16, colour=_INK, anchor="rm"
        )
    gib = max(1, round(round_step((frame.high - frame.low) / GIB / 12)))
    for number in range(math.ceil(frame.low / GIB / gib), int(frame.high / GIB / gib) + 1):
        x = frame.x(number * gib * GIB)
        canvas.fill(Box(x - 0.5, _BOTTOM, x + 0.5, _BOTTOM + 8), _INK)
        canvas.write((x, _BOTTOM + 24), f"{number * gib} GiB", size=16, colour=_INK, anchor="mm")
    canvas.write(
        ((_LEFT + _RIGHT) / 2, _BOTTOM + 60),
        "memory of the device that may be used: weights, slots, activations and a margin",
        size=17,
        colour=_PALE_INK,
        anchor="mm",
    )


def _draw_step(canvas: Canvas, frame: _Frame, dot: Dot, following: Dot) -> None:
    """A budget holds until the next one: a staircase, because blocks are whole."""
    left, right = frame.x(dot.budget_bytes), frame.x(following.budget_bytes)
    y, next_y = frame.y(dot.step_seconds), frame.y(following.step_seconds)
    canvas.fill(Box(left, y - 2, right + 2, y + 2), _LINE)
    canvas.fill(Box(right - 2, min(y, next_y) - 2, right + 2, max(y, next_y) + 2), _LINE)
