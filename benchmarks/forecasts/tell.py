"""Tells the forecasts as the README's table, and puts it between its marks there."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.forecasts.how import foreseen
from benchmarks.forecasts.what import ROWS, Row
from benchmarks.shared.markdown import table
from blockswap.forecast import Forecast
from blockswap.units import format_bytes, format_seconds

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- forecasts: begin -->", "<!-- forecasts: end -->"
HEAD = "| card | model and clip | streamed | peak on the card | pinned RAM | a forward, forecast |"


def line(row: Row) -> str:
    """The row in Markdown."""
    width, height, frames = row.clip
    head = f"| {row.card} | {row.model}, {width}x{height}, {frames} frames | "
    told = foreseen(row)
    if not isinstance(told, Forecast):
        fits = f"{told.frames} frames do" if told else "no clip of this size does"
        return f"{head}does not fit: {fits} | | | |"
    plan, timing = told.plan, told.plan.timing
    assert plan.peak_bytes is not None, "a forecast knows its workload"
    assert timing is not None, "a card has a rate"
    blocks = sum(unit.kind == "block" for unit in told.order.model.units)
    waits = timing.exposed_seconds / timing.step_seconds
    return (
        f"{head}{told.blocks_to_swap} of {blocks} blocks | "
        f"{format_bytes(plan.peak_bytes)} | {format_bytes(plan.pinned_bytes)} | "
        f"{format_seconds(timing.step_seconds)}, {waits:.1%} waiting |"
    )


def forecasts(rows: Sequence[Row] = ROWS) -> str:
    """All rows in Markdown."""
    return table(HEAD, map(line, rows))


def write(made: str) -> None:
    """Puts the table between its marks in the README."""
    text = README.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    README.write_text(f"{before}\n{made}\n{after}")
