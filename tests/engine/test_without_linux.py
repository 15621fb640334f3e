"""The disk's tests pass in a process that never had `os.preadv`, O_DIRECT or `posix_fadvise`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTS = (
    "engine/test_streamed_file.py",
    "engine/test_disk_store.py",
    "engine/test_file_slab.py",
    "engine/test_readers.py",
    "engine/test_disk_faults.py",
    "engine/test_disk_fault_matrix.py",
    "engine/test_equality_files.py",
    "convert/test_convert_disk.py",
)
# Before anything of ours, or pytest, is imported.
CHILD = """
import os, sys
for name in sys.argv[1].split(","):
    delattr(os, name)
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "missing", ["preadv,O_DIRECT,posix_fadvise,O_CLOEXEC", "O_DIRECT,posix_fadvise"]
)
def test_the_disk_tests_pass_all_the_same(missing: str, tmp_path: Path) -> None:
    """On the CPU: how a file is read does not depend on the device."""
    command = [
        *(sys.executable, "-c", CHILD, missing),
        *(str(HERE.parent / test) for test in TESTS),
        *("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "not sim and not memory"),
        *("--basetemp", str(tmp_path / "child"), "--rootdir", str(HERE.parents[1])),
    ]
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    told = subprocess.run(
        command, capture_output=True, timeout=900, check=False, text=True, env=variables
    )
    assert told.returncode == 0, told.stdout[-4000:]
    assert " passed" in told.stdout
