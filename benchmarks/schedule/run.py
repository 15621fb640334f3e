"""Runs the grid of the schedule benchmark, all of it or a part, and keeps what it does not run."""

import sys
import time
from collections.abc import Sequence

from benchmarks.schedule import how
from benchmarks.schedule.tell import summary_table, write
from benchmarks.schedule.what import Row, misses, points
from benchmarks.shared import results
from benchmarks.shared.options import parser_of


def measure(*, quick: bool, only: str = "") -> list[Row]:
    """Runs the grid, or what has `only` in its 'schedule, tier'; says how far it is."""
    todo = [point for point in points(quick=quick) if only in f"{point.schedule}, {point.tier}"]
    rows: list[Row] = []
    began = time.monotonic()
    for number, point in enumerate(todo, start=1):
        rows.append(how.measure(point))
        if number % 20 == 0 or number == len(todo):
            elapsed = time.monotonic() - began
            print(f"\r{number}/{len(todo)} runs, {elapsed:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return rows


def kept_rows(measured: Sequence[Row]) -> list[Row]:
    """Rows of the last result whose schedules were not measured now."""
    again = {(row.schedule, row.tier) for row in measured}
    rows = [Row(**row) for row in results.kept_rows("schedule")]
    return [row for row in rows if (row.schedule, row.tier) not in again]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, writes or prints, and returns 1 when ours misses its target in any row."""
    parser = parser_of("benchmarks.schedule")
    parser.add_argument("--quick", action="store_true", help="a thin grid, printed only")
    parser.add_argument("--only", default="", help="part of 'schedule, tier'; other rows are kept")
    options = parser.parse_args(arguments)
    rows = measure(quick=options.quick, only=options.only)
    if not options.quick:
        rows += kept_rows(rows) if options.only else []
        order = [(point.schedule, point.tier) for point in points()]
        rows.sort(key=lambda row: order.index((row.schedule, row.tier)))
        write(rows)
    print(summary_table(rows))
    for row in misses(rows):
        print(f"MISSED: {row}", file=sys.stderr)
    return 1 if misses(rows) else 0
