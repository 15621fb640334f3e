"""Starts a few processes as the ranks of one group and gathers what each of them says."""

import functools
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
    """Runs `scenario` (a function in scenarios/) in `count` processes, one rank each.

    They are forked by one process that lives as long as the tests: it has all imports done.
    """
    with tempfile.TemporaryDirectory() as folder:
        starter = _starter()
        assert starter.stdin is not None
        assert starter.stdout is not None
        starter.stdin.write(json.dumps([count, folder, scenario, options]) + "\n")
        starter.stdin.flush()
        codes = json.loads(starter.stdout.readline())  # each rank ends itself after a while
        return [_said(code, _text(folder, "out", rank), _text(folder, "errors", rank))
                for rank, code in enumerate(codes)]  # fmt: skip


def run_fresh_ranks(count: int, scenario: str, **options: Any) -> list[Said]:
    """The same, each process started by itself: its memory is all its own."""
    with tempfile.TemporaryDirectory() as folder:
        whats = [json.dumps([rank, count, folder, scenario, options]) for rank in range(count)]
        processes = [_started(what) for what in whats]
        try:
            return [said(process) for process in processes]
        finally:
            for process in processes:
                process.kill()


def stop() -> None:
    """No test starts ranks any more."""
    if _starter.cache_info().currsize:
        starter = _starter()
        _starter.cache_clear()
        starter.communicate()


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
        "GLOO_SOCKET_IFNAME": "lo",  # whatever the machine's name stands for
        "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed goes back to the system at once
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def said(process: "subprocess.Popen[str]") -> Said:
    """What a process has printed, once it has ended."""
    out, errors = process.communicate(timeout=300)
    return _said(process.returncode, out, errors)


@functools.cache
def _starter() -> "subprocess.Popen[str]":
    return _started("fork", stdin=subprocess.PIPE, stderr=None)


def _started(what: str, **streams: Any) -> "subprocess.Popen[str]":
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    command = [sys.executable, "-m", "scenarios", what]
    return subprocess.Popen(command, text=True, env=environment(), **streams)


def _said(code: int, out: str, errors: str) -> Said:
    lines = out.strip().splitlines()
    value = json.loads(lines[-1]) if code == 0 and lines else None
    return Said(code, value, errors[-3000:])


def _text(folder: str, name: str, rank: int) -> str:
    return Path(folder, f"{name}.{rank}").read_text()
