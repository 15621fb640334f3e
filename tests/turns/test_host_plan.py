"""The host memory that `plan_call` names is what a process of its own takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_families import FAMILIES

# In CI one family; `make every-video` takes all.
CALLS = tuple(FAMILIES) if os.environ.get("BLOCKSWAP_EVERY_POINT") else ("flux",)


@pytest.mark.skipif(sys.platform != "linux", reason="a peak is told on Linux")
@pytest.mark.parametrize("family", CALLS)
def test_a_call_takes_what_was_planned(family: str) -> None:
    script = Path(__file__).with_name("process_run.py")
    path = os.pathsep.join([*sys.path, str(script.parent)])
    done = subprocess.run(
        [sys.executable, str(script), family],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["measured"] == pytest.approx(told["planned"], rel=0.05)
