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
    for _ in range(2):  # worked out, then from the cache
        done = subprocess.run(
            [sys.executable, str(RUN)],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
        )
        _, peak_bytes = done.stdout.split()
        assert int(peak_bytes) < 2**30
