"""Runs the 14B benchmark: makes sure of the checkpoint, and starts the child that has 4 GB."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.disk_14b.tell import report, write
from benchmarks.disk_14b.what import LIMIT, ROUNDS, VARIANT, misses, rows_of
from benchmarks.shared.bounded_memory import large_file, refuse_without_limits, told_within
from blockswap.synth import synth

DISK_BYTES = 30 * 10**9


@contextmanager
def checkpoint(folder: Path | None) -> Iterator[Path]:
    """The 14B file in `folder`, written if it is not there; else in a folder that goes again."""
    name = f"{VARIANT}.safetensors"
    with large_file(folder, name, DISK_BYTES, lambda path: synth(VARIANT, path)) as path:
        yield path


def main(arguments: Sequence[str]) -> int:
    """Measures, writes, prints; returns 1 when a target is missed."""
    refuse_without_limits(LIMIT)
    with checkpoint(Path(arguments[0]) if arguments else None) as path:
        told = told_within(LIMIT, "benchmarks.disk_14b.how", path, ROUNDS)
    rows = rows_of(told)
    write(told, rows)
    print(report(told, rows))
    return 1 if misses(told, rows) else 0
