"""Tells what pieces cost: a table of ratios, and the same as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

from benchmarks.pieces.what import AIMED, ROUNDS, TARGET_RATIO, TOKENS, Row
from benchmarks.shared import results
from benchmarks.shared.machine import machine
from benchmarks.shared.markdown import bullet_list, document, table


def write(rows: Sequence[Row]) -> None:
    data = {"conditions": conditions(), "rows": [asdict(row) for row in rows]}
    results.write("pieces", data, report(rows))


def report(rows: Sequence[Row]) -> str:
    """The results as Markdown."""
    return document(
        [
            "# A block in pieces against the whole",
            bullet_list(conditions()),
            table(
                "| tokens in a piece | whole | in pieces | ratio | target | output |",
                map(_line, rows),
            ),
        ]
    )


def _line(row: Row) -> str:
    met = {True: "met", False: "missed", None: ""}[row.meets]
    same = "equal" if row.equal else "differs"
    return (
        f"| {row.chunk_tokens:,} | {median(row.whole):.2f} s | {median(row.pieces):.2f} s | "
        f"**{row.ratio:.3f}** | {met} | {same} |"
    )


def conditions() -> dict[str, str]:
    return machine() | {
        "model": "Wan2.1 T2V 1.3B with one block of its 30, random weights, fp32, "
        f"{TOKENS:,} tokens",
        "measured": "seconds of the processor (one thread) for a forward, "
        f"{ROUNDS} rounds in turn; the ratio is the median of the rounds' own",
        "target": f"a ratio of at most {TARGET_RATIO} in pieces of "
        f"{' and '.join(f'{size:,}' for size in AIMED)} tokens",
    }
