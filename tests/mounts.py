"""Real file systems for tests that need one: mounted for a while, as root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """`mount ARGUMENTS FOLDER` around a block; skips the test where that cannot be had.

    Never where CI is set and root runs it: what was skipped there nobody would see.
    """
    folder.mkdir()
    command = ["mount", *arguments, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        reason = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError:
        reason = "there is no mount command"
    if reason and "CI" in os.environ and os.geteuid() == 0:
        pytest.fail(f"CI runs as root, and yet a mount failed: {reason}")
    if reason:
        pytest.skip(f"needs root and a file system of its own: {reason}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)
