"""Runs the benchmark of compiled blocks."""

from benchmarks.compiled.how import measure
from benchmarks.compiled.tell import report, write


def main() -> int:
    """Measures, writes, prints; returns 1 when the target is missed."""
    rows = measure()
    write(rows)
    print(report(rows))
    return 0 if all(row.meets and row.equal for row in rows) else 1
