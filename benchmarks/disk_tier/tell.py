"""Tells rows of the disk benchmark: as Markdown, as JSON and as a chart."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.disk_tier.how.runner import PATIENCE_SECONDS
from benchmarks.disk_tier.what import NOISE, OURS, RESIDENT, THREADS, Row, Track, misses
from benchmarks.shared import results
from benchmarks.shared.chart import Line, Panel, draw
from benchmarks.shared.machine import machine
from benchmarks.shared.markdown import bullet_list, document, table
from blockswap.units import format_bytes


def write(rows: Sequence[Row]) -> None:
    """Writes JSON, Markdown and chart."""
    data = {"rows": [row.as_json() for row in rows]}
    results.write("disk_tier", data, markdown(rows))
    write_chart(rows, results.RESULTS / "disk_tier.png")


def markdown(rows: Sequence[Row], threads: int = THREADS) -> str:
    """The whole result."""
    parts = [
        "# Blocks from the disk, in bounded memory",
        bullet_list(machine() | conditions(threads)),
        "![seconds of a forward over the larger of compute and raw read](disk_tier.png)",
        summary_table(rows),
        *(f"Missed: {sentence}." for row in rows for sentence in misses(row)),
    ]
    for row in rows:
        parts += [f"## {_title(row)}", _conditions_of(row), _table(row)]
    return document(parts)


def conditions(threads: int) -> dict[str, str]:
    """What every row has in common."""
    return {
        "model": "Wan 2.1 T2V-1.3B with 10 or all 30 of its blocks, random weights, all blocks "
        f"streamed; {threads} torch threads",
        "memory": "a cgroup for each method, set before its interpreter starts, page cache charged",
        "rounds": "interleaved, every round begins with another method; medians, and ratios taken "
        "round by round; every counted forward, and every raw read, comes behind one of the same "
        "process that is not, as in a generation",
        "raw read": "the bytes of all blocks with O_DIRECT, 32 MiB each, 2 and 4 at a time, round "
        "1 GiB of memory: the mean of four processes, two started before the methods and two "
        "after; the setting with the best median counts",
        "discarding": "the same bytes, 8 MiB each into one buffer that fits a processor's cache; "
        "what it brings is gone with the next read, so it is told and held against nobody",
        "both at once": "the raw read, 4 at a time, and a forward all in RAM, in two processes "
        "begun together, until both have ended; the mean with two of the raw processes. What "
        "reading and computing take from each other, with no streamer between them; told, and no "
        "target",
        "patience": f"{PATIENCE_SECONDS:.0f} s for an answer, then a method is ended: failed",
        "prepared outside of the limit, not counted": "the copies of the model that "
        "accelerate disk_offload, diffusers group offload and aircanvas make on the disk",
        "targets": "ours at most 1.02 x all in RAM where the raw read takes at most half of it, "
        "1.05 x the raw read where that takes twice as long, else 1.08 x the larger; no peer under "
        f"the same limit faster (in every round and below {NOISE} x ours), none as fast in any "
        "round where the disk binds",
    }


def summary_table(rows: Sequence[Row]) -> str:
    """Every method in every row, over the larger of compute and raw read."""
    names = [name for name in rows[0].tracks if name != RESIDENT]
    lines = []
    for row in rows:
        cells = [_cell(row, name) for name in names]
        measured = (row.compute, row.read, row.both)
        figures = " | ".join(f"{statistics.median(one):.2f}" if one else "" for one in measured)
        lines.append(f"| {_title(row)} | {figures} | {row.kind} | {' | '.join(cells)} |")
    head = "| row | compute, s | raw read, s | both at once, s | binds | "
    return table(head + " | ".join(names) + " |", lines)


def _cell(row: Row, name: str) -> str:
    track = row.tracks.get(name)
    if track is None or not track.samples:
        return "killed" if track is not None and track.killed and not track.error else "failed"
    ratio = f"{row.over_bound(name):.3f}"
    ratio = f"**{ratio}**" if name == OURS else ratio
    if not track.killed:
        return ratio
    limit = "without a limit" if track.limit_bytes is None else f"in {_mb(track.limit_bytes)}"
    return f"killed; {ratio} {limit}"


def _table(row: Row) -> str:
    head = (
        "| method | s | over the bound | least - most | against all in RAM | peak of all memory "
        "| at the end: own + page cache | read a forward | equal bits |"
    )
    return table(head, (_line(row, name, track) for name, track in row.tracks.items()))


def _line(row: Row, name: str, track: Track) -> str:
    ran = ""
    if track.samples and track.limit_bytes != row.limit_bytes:
        ran = " (no limit)" if track.limit_bytes is None else f" (in {_mb(track.limit_bytes)})"
    if track.killed:
        ran += f", killed in {' and '.join(_mb(limit) for limit in track.killed)}"
    if not track.samples:
        return f"| {name}{ran} | {track.error or 'killed'} |" + " |" * 7
    ratios = row.ratios(name, row.bounds)
    against = statistics.median(row.ratios(name, row.compute))
    read = statistics.median(sample.read_bytes for sample in track.samples)
    return (
        f"| {name}{ran} | {track.median:.3f} | {statistics.median(ratios):.3f} | "
        f"{min(ratios):.3f} - {max(ratios):.3f} | {against:.3f} | {_mb(track.peak_bytes)} | "
        f"{_mb(track.anonymous_bytes)} + {_mb(track.cached_bytes)} | {format_bytes(int(read))} | "
        f"{'yes' if row.equal(name) else 'no'} |"
    )


def _conditions_of(row: Row) -> str:
    raw = ", ".join(
        f"{statistics.median(seconds):.3f} s with {threads}" for threads, seconds in row.raw.items()
    )
    raw += " at a time"
    if row.discarding:
        discarding = statistics.median(row.discarding)
        raw += f", {discarding:.3f} s discarding"
    if row.both:
        raw += f". Both at once: {statistics.median(row.both):.3f} s"
        if row.tracks[OURS].samples:
            raw += f", ours {statistics.median(row.ratios(OURS, row.both)):.3f} x that"
    bound = {"compute": "all in RAM", "disk": "the raw read", "between": "the larger of both"}
    return (
        f"Limit {_mb(row.limit_bytes)}. Bound: {bound[row.kind]}. Raw read: {raw}; "
        f"{len(row.compute)} rounds."
    )


def _title(row: Row) -> str:
    plural = "s" * (row.clip.tokens != 1)
    return f"{row.model.name}, {row.clip.tokens} token{plural}"


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f} MB"


def write_chart(rows: Sequence[Row], path: Path) -> None:
    """Seconds over the larger of compute and raw read, against how much the disk is asked for."""
    panels: list[Panel] = []
    for dtype in dict.fromkeys(row.model.dtype for row in rows):
        own = [row for row in rows if row.model.dtype == dtype]
        names = [name for name in own[0].tracks if name != RESIDENT]
        lines = [Line(name, _points(own, name)) for name in names]
        panels.append(Panel(f"{dtype}, under the limit; what was killed is not drawn", lines))
    draw(
        panels,
        path,
        x_label="raw read / compute of a forward",
        y_label="forward / the larger of both",
    )


def _points(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    points = []
    for row in rows:
        track = row.tracks[name]
        if track.samples and not track.killed:
            larger = max(statistics.median(row.read), statistics.median(row.compute))
            points.append((row.read_over_compute, track.median / larger))
    return sorted(points)
