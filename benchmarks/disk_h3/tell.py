"""Tells what the MiniMax-H3 benchmark found: a table, a sentence a missed target, as JSON, too."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.disk_h3.what import (
    LIMIT,
    OPENING_SECONDS,
    OVER_BOUND,
    ROUNDS,
    Row,
    misses,
    words,
)
from benchmarks.shared import results
from benchmarks.shared.machine import machine
from benchmarks.shared.markdown import bullet_list, document, table
from blockswap.units import format_bytes, format_rate


def write(told: dict[str, Any], rows: Sequence[Row]) -> None:
    data = {"conditions": machine() | conditions(told), "told": told}
    data["results"] = [asdict(row) | {"over_bound": row.over_bound} for row in rows]
    results.write("disk_h3", data, report(told, rows))


def report(told: dict[str, Any], rows: Sequence[Row]) -> str:
    """The result as Markdown."""
    lines = [
        f"| {words(row.clip)} | {row.forward:.2f} | {row.compute:.2f} | {row.read:.2f} "
        f"| **{row.over_bound:.3f}** |"
        for row in rows
    ]
    parts = [
        "# MiniMax-H3's geometry from the disk, in 6 GB",
        bullet_list(machine() | conditions(told)),
        f"Opened in **{told['opening']:.2f} s**, host libraries' imports included. Most memory "
        f"that was charged to the cgroup: **{format_bytes(told['memory']['peak'])}** of "
        f"{format_bytes(LIMIT)}, {format_bytes(told['weights_and_slots'])} of it weights and "
        f"slots. The limit was reached {told['times_at_limit']} times.",
        table(
            "| clip | forward, s | compute of the blocks, s | raw read of the blocks, s "
            "| forward / the larger |",
            lines,
        ),
        *(f"Missed: {sentence}." for sentence in misses(told, rows)),
    ]
    return document(parts)


def conditions(told: dict[str, Any]) -> dict[str, str]:
    raw = "; ".join(
        f"{readers} at a time {format_rate(told['read_bytes'] / statistics.median(seconds))}"
        for readers, seconds in told["raw"].items()
        if seconds
    )
    blocks = " and ".join(f"{count} {path}" for path, count in told["streamed"].items())
    return {
        "model": f"MiniMaxH3Transformer3DModel of diffusers in bf16 with 20 of its 50 blocks, "
        f"random weights; {blocks} streamed through {told['slots']} slots, "
        f"{format_bytes(told['read_bytes'])} a forward",
        "forward": f"median of {ROUNDS}, each behind another forward",
        "compute": "the first block of each list again and again with its weights in memory, "
        "median, times its blocks; what lies outside the blocks is not in it",
        "raw read": f"the same bytes by os.preadv with O_DIRECT, 32 MiB each, round 256 MiB of "
        f"memory: {raw}; the faster counts",
        "order": "forward, blocks and raw read in turns in one process",
        "targets": f"opened in {OPENING_SECONDS:.0f} s, a forward at most {OVER_BOUND} x its bound",
    }
