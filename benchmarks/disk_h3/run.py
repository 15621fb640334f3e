"""Runs the MiniMax-H3 benchmark: makes sure of the folder, and starts the child that has 6 GB."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.disk_h3.tell import report, write
from benchmarks.disk_h3.what import LIMIT, MODEL, ROUNDS, misses, rows_of
from benchmarks.shared.bounded_memory import large_file, refuse_without_limits, told_within
from blockswap.synth import synth
from blockswap.synth.write import FOLDER_FILE

DISK_BYTES = 29 * 10**9


def make(path: Path) -> None:
    """The model's folder at the place of its file's."""
    made = path.parent / "made"
    synth(MODEL, made)
    for file in made.iterdir():
        shutil.move(file, path.parent / file.name)
    made.rmdir()


def main(arguments: Sequence[str]) -> int:
    """Measures, writes, prints; returns 1 when a target is missed."""
    refuse_without_limits(LIMIT)
    folder = Path(arguments[0]) if arguments else None
    with large_file(folder, FOLDER_FILE, DISK_BYTES, make) as path:
        told = told_within(LIMIT, "benchmarks.disk_h3.how", path, ROUNDS)
    rows = rows_of(told)
    write(told, rows)
    print(report(told, rows))
    return 1 if misses(told, rows) else 0
