"""Lanes of a timeline in seconds: which compute, copy, read and wait bars stand in which row.

compute        |0 |1   |2  |//|3   |     // = waiting, in red
copy engine   |1 |2 |   |3   |
disk reads    |3     |
              |5     |                   two reads at once: a second row of the same lane
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..events import Measured, Visit
from .spans import copy_span, last_forwards, read_span
from .words import is_block

BarKind = Literal["resident", "streamed", "waiting", "copy", "read"]


@dataclass(frozen=True, slots=True)
class Bar:
    """One span of one visit, in seconds; `label` is what fits on a narrow bar."""

    kind: BarKind
    start: float
    end: float
    label: str
    visit: Visit


@dataclass(frozen=True, slots=True)
class Lane:
    """One engine at work. Bars of one row do not overlap."""

    title: str
    rows: tuple[tuple[Bar, ...], ...]


def short_label(unit: str) -> str:
    """`blocks.12` -> `12`, `vace_blocks.3` -> `v3`, `condition_embedder.text_embedder` -> `te`."""
    prefix, _, index = unit.rpartition(".")
    if not is_block(unit):
        return index[:2]
    return index if prefix.rpartition(".")[2] == "blocks" else f"{prefix[0]}{index}"


def window_of(measured: Measured, forwards: int) -> tuple[float, float] | None:
    """Seconds from the first arrival to the last end of the last `forwards` forwards on record.

    None where no visit was timed.
    """
    shown = last_forwards(measured.visits, forwards)
    if not shown:
        return None
    return shown[0].arrived, max(visit.ended for visit in shown)


def forward_starts(measured: Measured, forwards: int) -> tuple[tuple[int, float], ...]:
    """(forward, second of its first arrival) for the last `forwards` forwards on record."""
    starts: dict[int, float] = {}
    for visit in last_forwards(measured.visits, forwards):
        starts.setdefault(visit.forward, visit.arrived)
    return tuple(starts.items())


def lanes_of(measured: Measured, window: tuple[float, float]) -> tuple[Lane, ...]:
    """Compute, copy engine and disk reads, clipped to `window`; a lane without bars is left out.

    Copies and reads of other forwards that ran within the window are there too: they are what the
    engines did at that time.
    """
    compute: list[Bar] = []
    copies: list[Bar] = []
    reads: list[Bar] = []
    for visit in measured.visits:
        label = short_label(visit.unit)
        computed: BarKind = "resident" if visit.tier == "resident" else "streamed"
        compute.append(Bar("waiting", visit.arrived, visit.started, label, visit))
        compute.append(Bar(computed, visit.started, visit.ended, label, visit))
        if (span := copy_span(visit)) is not None:
            copies.append(Bar("copy", *span, label, visit))
        if (span := read_span(visit)) is not None:
            reads.append(Bar("read", *span, label, visit))
    titled = (("compute", compute), ("copy engine", copies), ("disk reads", reads))
    lanes = (Lane(title, _rows(_clipped(bars, window))) for title, bars in titled)
    return tuple(lane for lane in lanes if lane.rows)


def _clipped(bars: Iterable[Bar], window: tuple[float, float]) -> list[Bar]:
    low, high = window
    clipped = (
        Bar(bar.kind, max(bar.start, low), min(bar.end, high), bar.label, bar.visit) for bar in bars
    )
    return [bar for bar in clipped if bar.end > bar.start]


def _rows(bars: list[Bar]) -> tuple[tuple[Bar, ...], ...]:
    # First fit in order of start uses as few rows as there are bars at once.
    rows: list[list[Bar]] = []
    for bar in sorted(bars, key=lambda bar: (bar.start, bar.end)):
        for row in rows:
            if row[-1].end <= bar.start:
                row.append(bar)
                break
        else:
            rows.append([bar])
    return tuple(tuple(row) for row in rows)
