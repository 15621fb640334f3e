"""Tells what streaming compiled blocks costs: a table of ratios, and the same as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

from benchmarks.compiled.what import BLOCKS, ROUNDS, TARGET_RATIO, TOKENS, Row
from benchmarks.shared import results
from benchmarks.shared.machine import machine
from benchmarks.shared.markdown import bullet_list, document, table


def write(rows: Sequence[Row]) -> None:
    data = {"conditions": conditions(), "rows": [asdict(row) for row in rows]}
    results.write("compiled", data, report(rows))


def report(rows: Sequence[Row]) -> str:
    """The results as Markdown."""
    return document(
        [
            "# Compiled blocks, streamed from their file",
            bullet_list(conditions()),
            table(
                "| blocks | in memory | streamed | ratio | target | waited | graphs | output |",
                map(_line, rows),
            ),
        ]
    )


def _line(row: Row) -> str:
    met = "met" if row.meets else "missed"
    waited = "not told" if row.waited is None else f"{row.waited:.2f} s"
    same = "equal" if row.equal else "differs"
    return (
        f"| {row.what} | {median(row.whole):.2f} s | {median(row.streamed):.2f} s | "
        f"**{row.ratio:.3f}** | {met} | {waited} | {row.graphs} | {same} |"
    )


def conditions() -> dict[str, str]:
    return machine() | {
        "model": f"Wan2.1 T2V 1.3B with {BLOCKS} blocks of its 30, all streamed; random weights, "
        f"fp32, {TOKENS:,} tokens, one thread",
        "measured": f"processor seconds of a forward, those of the threads that read counted in, "
        f"{ROUNDS} rounds in turn on a shared machine; the ratio is the median of the rounds' own; "
        "waited: seconds in which a block's bytes were not there yet, in all forwards together",
        "target": f"a ratio of at most {TARGET_RATIO}",
    }
