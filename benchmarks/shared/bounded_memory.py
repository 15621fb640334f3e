"""Benchmarks in bounded memory: their file, which needs room on the disk, and the limited child."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blockswap.units import format_bytes
from memory_group import memory_group, python, unavailable_reason


def refuse_without_limits(limit_bytes: int) -> None:
    """Ends the benchmark where this machine cannot limit a process's memory."""
    reason = unavailable_reason()
    if reason is not None:
        raise SystemExit(f"the limit of {limit_bytes // 10**9} GB cannot be set: {reason}")


@contextmanager
def large_file(
    folder: Path | None, name: str, disk_bytes: int, write: Callable[[Path], object]
) -> Iterator[Path]:
    """The file `name` in `folder`, written if it is not there; else in a folder that goes again.

    `disk_bytes` must be free where it is written.
    """
    place = folder or Path(tempfile.mkdtemp(prefix="blockswap-benchmark-"))
    path = place / name
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            free = shutil.disk_usage(place).free
            if free < disk_bytes:
                raise SystemExit(
                    f"{place} has {format_bytes(free)} free and {format_bytes(disk_bytes)} are "
                    "needed: make room, or name another folder with FOLDER="
                )
            print(f"writing {path} ...", flush=True)
            write(path)
        yield path
    finally:
        if folder is None:
            shutil.rmtree(place)


def told_within(limit_bytes: int, module: str, *arguments: object) -> dict[str, Any]:
    """What `python -m module first-argument group ...` prints as JSON, in a cgroup of its own.

    The child is given the group's folder as its second argument.
    """
    with memory_group(limit_bytes) as group:
        first, *others = arguments
        done = subprocess.run(
            group.command(*python("-m", module, first, group.folder, *others)),
            stdout=subprocess.PIPE,
            check=False,
            text=True,
        )
        if done.returncode:
            raise SystemExit(
                f"the run ended with {done.returncode} (-9 is what the limit does); "
                f"{format_bytes(group.peak_bytes)} of {format_bytes(limit_bytes)} were used at most"
            )
        return dict(json.loads(done.stdout))
