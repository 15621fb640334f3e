"""Runs such a benchmark: makes sure of the checkpoint, and starts the child that has little RAM."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.shared.bounded_memory import large_file, refuse_without_limits, told_within
from benchmarks.shared.options import folder_of

from .case import ROUNDS, Case
from .judge import misses, rows_of
from .tell import report, write


@contextmanager
def checkpoint(case: Case, folder: Path | None) -> Iterator[Path]:
    """The file in `folder`, written if it is not there; else in a folder that goes again."""
    with large_file(folder, case.file, case.disk_bytes, case.make) as path:
        yield path


def main(case: Case, arguments: Sequence[str]) -> int:
    """Measures, writes, prints; returns 1 when a target is missed."""
    folder = folder_of(f"benchmarks.{case.name}", arguments)
    refuse_without_limits(case.limit_bytes)
    with checkpoint(case, folder) as path:
        told = told_within(case.limit_bytes, f"benchmarks.{case.name}.how", path, ROUNDS)
    rows = rows_of(case, told)
    write(case, told, rows)
    print(report(case, told, rows))
    return 1 if misses(told, rows) else 0
