"""The tests that read files pass in a process that never had what only Linux has.

`BLOCKSWAP_TEST_WITHOUT` (see `conftest.py`) does the same for any other part of the suite.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
READING = (
    "engine/test_streamed_file.py",
    "engine/test_disk_store.py",
    "engine/test_file_slab.py",
    "engine/test_readers.py",
    "engine/test_disk_faults.py",
    "engine/test_disk_fault_matrix.py",
    "engine/test_equality_files.py",
    "engine/test_every_tensor.py",
    "engine/test_opening_failures.py",
    "convert/test_convert.py",
    "convert/test_convert_disk.py",
    "synth/test_synth_disk.py",
    "probe",
    "cli/test_cli_convert.py",
    "cli/test_cli_inspect.py",
    "cli/test_cli_probe.py",
    "cli/test_cli_synth.py",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "missing", ["preadv,O_DIRECT,posix_fadvise,O_CLOEXEC", "O_DIRECT,posix_fadvise"]
)
def test_the_tests_that_read_files_pass_all_the_same(missing: str, tmp_path: Path) -> None:
    """On the CPU: how a file is read does not depend on the device."""
    command = [
        *(sys.executable, "-m", "pytest", *(str(TESTS / test) for test in READING)),
        *("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "not sim and not memory"),
        *("--basetemp", str(tmp_path / "child"), "--rootdir", str(TESTS.parent)),
    ]
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    told = subprocess.run(
        command,
        capture_output=True,
        timeout=900,
        check=False,
        text=True,
        env=variables | {"BLOCKSWAP_TEST_WITHOUT": missing},
    )
    assert told.returncode == 0, told.stdout[-4000:]
    assert " passed" in told.stdout
