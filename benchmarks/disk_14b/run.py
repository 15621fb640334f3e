"""Runs the 14B benchmark: makes sure of the checkpoint, and starts the child that has 4 GB."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.disk_14b.tell import report, write
from benchmarks.disk_14b.what import LIMIT, ROUNDS, VARIANT, misses, rows_of
from blockswap.synth import synth
from blockswap.units import format_bytes
from memory_group import memory_group, python, unavailable_reason

DISK_BYTES = 30 * 10**9


@contextmanager
def checkpoint(folder: Path | None) -> Iterator[Path]:
    """The 14B file in `folder`, written if it is not there; else in a folder that goes again."""
    place = folder or Path(tempfile.mkdtemp(prefix="blockswap-14b-"))
    path = place / f"{VARIANT}.safetensors"
    try:
        if not path.exists():
            free = shutil.disk_usage(place).free
            if free < DISK_BYTES:
                raise SystemExit(
                    f"{place} has {format_bytes(free)} free and {format_bytes(DISK_BYTES)} are "
                    "needed: make room, or name another folder with FOLDER="
                )
            print(f"writing {path} ...", flush=True)
            synth(VARIANT, path)
        yield path
    finally:
        if folder is None:
            shutil.rmtree(place)


def measured(path: Path) -> dict[str, Any]:
    """Runs the child in its cgroup; what it tells, and the peak of all that was charged to it."""
    with memory_group(LIMIT) as group:
        command = python("-m", "benchmarks.disk_14b.how", path, group.folder, ROUNDS)
        done = subprocess.run(
            group.command(*command), stdout=subprocess.PIPE, check=False, text=True
        )
        if done.returncode:
            raise SystemExit(
                f"the run ended with {done.returncode} (-9 is what the limit does); "
                f"{format_bytes(group.peak_bytes)} of {format_bytes(LIMIT)} were used at most"
            )
        return dict(json.loads(done.stdout))


def main(arguments: Sequence[str]) -> int:
    """Measures, writes, prints; returns 1 when a target is missed."""
    reason = unavailable_reason()
    if reason is not None:
        raise SystemExit(f"the limit of 4 GB cannot be set: {reason}")
    with checkpoint(Path(arguments[0]) if arguments else None) as path:
        told = measured(path)
    rows = rows_of(told)
    write(told, rows)
    print(report(told, rows))
    return 1 if misses(told, rows) else 0
