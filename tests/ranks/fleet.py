"""Starts a few processes as the ranks of one group and gathers what each of them says."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TESTS = HERE.parent


@dataclass(frozen=True)
class Said:
    """What a rank returned, or the last lines of its error output."""

    code: int
    value: Any
    errors: str


def run_ranks(count: int, scenario: str, **options: Any) -> list[Said]:
    """Runs `scenario` (a function in scenarios/) in `count` processes, one rank each."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [_start(rank, count, scenario, options, folder) for rank in range(count)]
        try:
            return [said(process) for process in processes]
        finally:
            for process in processes:
                process.kill()


def values(said: list[Said]) -> list[Any]:
    """What the ranks returned, where all of them ended well."""
    for rank, one in enumerate(said):
        assert one.code == 0, f"rank {rank}: {one.errors}"
    return [one.value for one in said]


def environment() -> dict[str, str]:
    """Of a rank: where it finds the tests' modules."""
    rooms = [str(TESTS / room) for room in ("engine", "formats", "encoders")]
    paths = [str(HERE), str(TESTS), *rooms, *sys.path]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def _start(
    rank: int, count: int, scenario: str, options: dict[str, Any], folder: str
) -> "subprocess.Popen[str]":
    what = json.dumps([rank, count, folder, scenario, options])
    return subprocess.Popen(
        [sys.executable, "-m", "scenarios", what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def said(process: "subprocess.Popen[str]") -> Said:
    """What a process has printed, once it has ended."""
    out, errors = process.communicate(timeout=300)
    lines = out.strip().splitlines()
    value = json.loads(lines[-1]) if process.returncode == 0 and lines else None
    return Said(process.returncode, value, errors[-3000:])
