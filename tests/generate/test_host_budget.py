"""The process stays within the host memory that was named, decode and file writing included."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from single_files import MODELS
from tiny_pipelines import KINDS
from whole import by_us, request_for

from memory_group import memory_group, python, require_memory_groups

# In CI two runs; `make every-video` makes one of each kind of model, and of its single files.
FILES = [f"{model}.{form}" for model in MODELS for form in ("bf16", "fp8_scaled", "gguf")]
RUNS = (*KINDS, *FILES) if os.environ.get("BLOCKSWAP_EVERY_POINT") else ("t2v", "t2v.fp8_scaled")


@pytest.mark.root
@pytest.mark.parametrize("kind", RUNS)
def test_a_run_in_a_memory_cgroup(
    kind: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    require_memory_groups()
    script = Path(__file__).with_name("bounded_run.py")
    with memory_group(2**31) as group:
        command = group.command(*python(script, folders(kind), tmp_path, group.folder, kind))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)  # shown where it fails
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["streamed"] > 0
    assert told["planned"] <= told["budget"]
    assert told["measured"] <= told["budget"]
    assert told["measured"] == pytest.approx(told["planned"], rel=0.05)
    assert told["written"] > 0
    request = request_for(kind.partition(".")[0], tmp_path)
    (frames,), _, _ = by_us(folders(kind), request, tmp_path / "other.mp4", "cpu")
    assert np.array_equal(np.frombuffer((tmp_path / "frames").read_bytes(), "f4"), frames.ravel())
