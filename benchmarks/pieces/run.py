"""Runs the benchmark of forwards in pieces: one size of pieces after another."""

from benchmarks.pieces.how import measure
from benchmarks.pieces.tell import report, write
from benchmarks.pieces.what import SIZES


def main() -> int:
    """Measures, writes, prints; returns 1 when a size misses the target."""
    rows = [measure(size) for size in SIZES]
    write(rows)
    print(report(rows))
    return 0 if all(row.meets is not False and row.equal for row in rows) else 1
