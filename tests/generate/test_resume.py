"""A run that was killed anywhere goes on to the same frames; no finished step is done again."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from whole import by_us, request_for

HERE = Path(__file__).parent
# Where it ends, by which signal; then which steps and prompts are still to be computed.
POINTS = [
    ("t2v", "read:UMT5Stack", "SIGKILL", 4, 2),
    ("t2v", "encode:1", "SIGINT", 4, 1),
    ("t2v", "sample:1", "SIGKILL", 3, 0),
    ("t2v", "sample:3", "SIGINT", 1, 0),
    ("t2v", "sample:4", "SIGKILL", 0, 0),
    ("t2v", "read:WanDecoder3d", "SIGKILL", 0, 0),
    ("t2v", "write:5", "SIGKILL", 0, 0),
    ("two-experts", "sample:2", "SIGKILL", 2, 0),
    ("i2v", "sample:2", "SIGKILL", 2, 0),
    ("v2v", "sample:1", "SIGINT", 2, 0),
]


def run(cache: Path, *args: str) -> subprocess.CompletedProcess[str]:
    source = str(HERE.parents[1] / "src")
    env = {**os.environ, "BLOCKSWAP_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([source, str(HERE), str(HERE.parent)])
    command = [sys.executable, str(HERE / "interrupted.py"), *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("kind", "point", "sent", "steps", "texts"), POINTS)
def test_resumed_after_it_was_ended(
    kind: str,
    point: str,
    sent: str,
    steps: int,
    texts: int,
    folders: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "pipeline"
    folder.symlink_to(folders(kind))
    output = tmp_path / "clip.mp4"
    ended = run(tmp_path / "cache", str(folder), str(output), kind, point, sent, "new")
    assert ended.returncode == -getattr(signal, sent), ended.stderr
    assert not output.exists()
    resumed = run(tmp_path / "cache", str(folder), str(output), kind, "none:0", sent, "resume")
    assert resumed.returncode == 0, resumed.stderr
    _, digest, computed, encoded = resumed.stdout.split()
    assert (int(computed), int(encoded)) == (steps, texts)
    request = request_for(kind, tmp_path)
    (frames,), _, _ = by_us(folder, request, tmp_path / "other.mp4", "cpu")
    assert hashlib.sha256(np.asarray(frames).tobytes()).hexdigest() == digest
    assert [path.name for path in tmp_path.glob("*.resume*")] == []
