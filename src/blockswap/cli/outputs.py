"""Owns the question whether results can be written, asked before any work is done for them."""

import os
import shutil
import tempfile
from pathlib import Path

from ..errors import OutputError
from ..units import format_bytes


def prepare_folder(folder: Path, *, needed_bytes: int) -> None:
    """Makes `folder` and its parents, and returns when `needed_bytes` can be written there.

    Raises OutputError where it is a file, is not writable, or its disk is too full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions do not tell on every file system; a file does.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(
            f"cannot write into {folder}: it is, or lies below, a file: choose another folder"
        ) from error
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {os.strerror(error.errno or 0)}, choose another folder"
        ) from error
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise OutputError(
            f"cannot write into {folder}: {format_bytes(needed_bytes)} are needed and "
            f"{format_bytes(free_bytes)} are free, make room or choose another disk"
        )
