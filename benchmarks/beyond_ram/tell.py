"""Tells what such a benchmark found: a table, a sentence a missed target, and the same as JSON."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.shared import results
from benchmarks.shared.machine import machine
from benchmarks.shared.markdown import bullet_list, document, table
from blockswap.units import format_bytes, format_rate

from .case import OPENING_SECONDS, OVER_BOUND, READERS, Case
from .judge import Row, misses


def write(case: Case, told: Mapping[str, Any], rows: Sequence[Row]) -> None:
    data = {"conditions": machine() | conditions(case, told), "told": told}
    data["results"] = [
        {"clip": row.words, "over_bound": [one.over_bound for one in row.rounds]} for row in rows
    ]
    results.write(case.name, data, report(case, told, rows))


def report(case: Case, told: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The result as Markdown."""
    memory = told["memory"]
    parts = [
        f"# {case.title}",
        bullet_list(machine() | conditions(case, told)),
        f"Opened in **{told['opening']:.2f} s**, host libraries' imports included. Most memory "
        f"that was charged to the cgroup: **{format_bytes(memory['peak'])}** of "
        f"{format_bytes(case.limit_bytes)}; after the forwards "
        f"{format_bytes(memory['anonymous'] + memory['shared'])} of it were its own, the slots "
        f"among them, and {format_bytes(memory['page_cache'])} page cache. The limit was reached "
        f"{told['times_at_limit']} times.",
        table(
            "| clip | forward, s | compute of the blocks, s | raw read of the blocks, s "
            "| forward / the larger, round by round |",
            [_line(row) for row in rows],
        ),
        *(f"Missed: {sentence}." for sentence in misses(told, rows)),
    ]
    return document(parts)


def _line(row: Row) -> str:
    figures = " | ".join(_figure(row, name) for name in ("forward", "compute", "read"))
    least, most = row.spread("over_bound")
    ratio = f"**{row.median('over_bound'):.3f}** ({least:.3f} to {most:.3f})"
    return f"| {row.words} | {figures} | {ratio} |"


def _figure(row: Row, name: str) -> str:
    least, most = row.spread(name)
    return f"{row.median(name):.2f} ({least:.2f} to {most:.2f})"


def conditions(case: Case, told: Mapping[str, Any]) -> dict[str, str]:
    rounds = [one for row in told["rows"] for one in row["rounds"]]
    raw = "; ".join(
        f"{readers} at a time {format_rate(told['read_bytes'] / _median_read(rounds, readers))}"
        for readers in READERS
    )
    blocks = " and ".join(f"{count} {path}" for path, count in told["streamed"].items())
    return {
        "model": f"{case.model}, random weights; {blocks} streamed through {told['slots']} slots, "
        f"{format_bytes(told['read_bytes'])} a forward",
        "forward": f"median of {len(rounds) // len(told['rows'])} rounds (least to most), each "
        "behind another forward",
        "compute": "the first block of each list again and again with its weights in memory, "
        "median, times its blocks; what lies outside the blocks is not in it",
        "raw read": f"the same bytes by os.preadv with O_DIRECT, 32 MiB each, round 256 MiB of "
        f"memory: {raw}; in each round the faster of both counts, one before and one behind the "
        "forward",
        "targets": f"opened in {OPENING_SECONDS:.0f} s, a forward at most {OVER_BOUND} x its bound",
    }


def _median_read(rounds: Sequence[Mapping[str, Any]], readers: int) -> float:
    # Figures that come from JSON have words for keys.
    return statistics.median(
        {int(key): took for key, took in one["reads"].items()}[readers] for one in rounds
    )
