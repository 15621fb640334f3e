"""Runs `tests/comfy_core` with ComfyUI's own Python: those tests have it in their process."""

import os
import subprocess

import pytest

from comfy_host.environment import Environment
from comfy_host.server import REPOSITORY

# Those of a line share a process: to start one and import ComfyUI takes seconds.
SUITES = (
    "test_dynamic.py test_future_core.py test_loader.py test_plan.py test_formats.py "
    "test_unusual_files.py test_gguf.py",
    "test_equal.py test_nodes.py test_other_models.py test_pieces.py test_piece_size.py "
    "test_core_nodes.py test_made_once.py test_weights_anew.py test_relatives.py "
    "test_replaced.py",
    "test_out_of_memory.py test_simulated.py test_thirds.py test_together.py",
    "test_wrapper.py test_wrapper_memory.py",
    "test_real_wrapper.py",
)
# With BLOCKSWAP_WRAPPER=<folder of the real wrapper pack>; a process only to skip is not started.
NEEDS_THE_WRAPPER = "test_real_wrapper.py"


@pytest.mark.parametrize("suite", SUITES)
def test_in_the_process_of_comfyui(suite: str, environment: Environment) -> None:
    if suite == NEEDS_THE_WRAPPER and not os.environ.get("BLOCKSWAP_WRAPPER"):
        pytest.skip("tried by hand: set BLOCKSWAP_WRAPPER to the folder of the real pack")
    tests = REPOSITORY / "tests"
    folders = (REPOSITORY / "src", tests, tests / "comfy_core")
    variables = os.environ | {
        "BLOCKSWAP_COMFYUI": str(environment.core),
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "OMP_NUM_THREADS": "1",
    }
    for name in [name for name in variables if name.startswith(("PYTEST_", "COV_"))]:
        del variables[name]
    command = [environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs"]
    ran = subprocess.run(
        [*command, *(tests / "comfy_core" / name for name in suite.split())],
        cwd=REPOSITORY,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    if os.environ.get("BLOCKSWAP_COMFYUI"):
        print(f"{suite}: {ran.stdout.splitlines()[-1]}")
        assert " skipped" not in ran.stdout  # tried by hand: what was not run was not tried


def test_every_suite_is_run() -> None:
    there = {path.name for path in (REPOSITORY / "tests" / "comfy_core").glob("test_*.py")}
    assert there == {name for suite in SUITES for name in suite.split()}
