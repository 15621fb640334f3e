"""Runs the comparison with FSDP2: one schedule and number of ranks after another."""

from benchmarks.fsdp.how import measure
from benchmarks.fsdp.tell import report, write
from benchmarks.fsdp.what import RANKS, SCHEDULES


def main() -> int:
    """Measures, writes, prints; returns 1 when an output differs."""
    rows = [measure(schedule, ranks) for ranks in RANKS for schedule in SCHEDULES]
    write(rows)
    print(report(rows))
    return 0 if all(row.equal for row in rows) else 1
