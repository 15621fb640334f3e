"""Runs the overhead benchmark: all streamed, half of it, from a file to the CPU, and in parts."""

from benchmarks.host_overhead.how import disk_to_cpu, in_parts, null_accelerator
from benchmarks.host_overhead.tell import report, write
from benchmarks.host_overhead.what import BLOCKS, TARGET_MICROSECONDS


def main() -> int:
    """Measures, writes, prints; returns 1 when the median misses the target."""
    results = [null_accelerator(BLOCKS), null_accelerator(BLOCKS // 2), disk_to_cpu(), *in_parts()]
    write(results)
    print(report(results))
    return 1 if results[0].median > TARGET_MICROSECONDS else 0
