"""Tells published and forecast seconds side by side, with the error."""

from collections.abc import Iterable

from benchmarks.forecasts_published.what import Run
from benchmarks.shared.markdown import table
from blockswap.units import format_seconds


def report(told: Iterable[tuple[Run, float]]) -> str:
    """A line for each run and the forecast's seconds of it."""
    head = "| card | run | published | forecast | error |"
    return table(head, (_line(run, seconds) for run, seconds in told))


def _line(run: Run, told: float) -> str:
    width, height, frames = run.clip
    return (
        f"| {run.card} | {run.model}, {width}x{height}x{frames}, {run.steps} guided steps, "
        f"{run.said} | {format_seconds(run.seconds)} | {format_seconds(told)} | "
        f"{told / run.seconds - 1:+.0%} |"
    )
