"""The process stays within the host memory that was named, decode and file writing included."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from whole import by_us, request_for

from memory_group import memory_group, python, require_memory_groups

ROOM = 35_000_000  # the transformer alone is 45 MB


@pytest.mark.root
def test_a_run_in_a_memory_cgroup(folders: Callable[[str], Path], tmp_path: Path) -> None:
    require_memory_groups()
    script = Path(__file__).with_name("bounded_run.py")
    with memory_group(2**31) as group:
        command = group.command(*python(script, folders("t2v"), tmp_path, group.folder, ROOM))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["streamed"] > 0
    assert told["planned"] <= told["budget"]
    assert told["measured"] <= told["budget"]
    assert told["measured"] == pytest.approx(told["planned"], rel=0.05)
    assert told["written"] > 0
    request = request_for("t2v", tmp_path)
    (frames,), _, _ = by_us(folders("t2v"), request, tmp_path / "other.mp4", "cpu")
    assert np.array_equal(np.frombuffer((tmp_path / "frames").read_bytes(), "f4"), frames.ravel())
