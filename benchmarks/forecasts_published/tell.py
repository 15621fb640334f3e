"""Tells published and forecast seconds side by side, with the error."""

from benchmarks.forecasts_published.what import Run
from blockswap.units import format_seconds

HEAD = "| card | run | published | forecast | error |\n|---|---|---|---|---|"


def line(run: Run, told: float) -> str:
    """The row in Markdown; `told` are the forecast's seconds."""
    width, height, frames = run.clip
    return (
        f"| {run.card} | {run.model}, {width}x{height}x{frames}, {run.steps} guided steps, "
        f"{run.said} | {format_seconds(run.seconds)} | {format_seconds(told)} | "
        f"{told / run.seconds - 1:+.0%} |"
    )
