"""A plan for 14B at 720p needs no weights, little memory, and no torch the second time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
RUN = Path(__file__).with_name("run_plan.py")


def test_a_14b_plan_at_720p_in_under_a_gibibyte(tmp_path: Path) -> None:
    environment = {**os.environ, "BLOCKSWAP_CACHE": str(tmp_path)}
    for needs_torch in ("True", "False"):
        done = subprocess.run(
            [sys.executable, str(RUN)],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
        )
        torch_was_loaded, peak_bytes = done.stdout.split()
        assert torch_was_loaded == needs_torch
        assert int(peak_bytes) < 2**30
