"""The folder in which figures of this machine are kept between runs, and JSON files in it.

Nothing in it is needed: whoever reads a file here must manage without it, and measure anew.
"""

import contextlib
import json
import math
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from .errors import OutputError

OVERRIDE = "BLOCKSWAP_CACHE"
MOST_BYTES = 4 * 1024 * 1024  # a thousand times what any file here holds


def cache_folder() -> Path:
    """The user's cache folder of blockswap; it need not exist.

    `$BLOCKSWAP_CACHE` names it outright; else it is `blockswap` below `$XDG_CACHE_HOME` or
    `~/.cache` (macOS: `~/Library/Caches`, Windows: `%LOCALAPPDATA%`).
    """
    named = os.environ.get(OVERRIDE)
    if named:
        return Path(named)
    home = Path.home()
    if sys.platform == "win32":
        above = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        above = home / "Library" / "Caches"
    else:
        wanted = os.environ.get("XDG_CACHE_HOME", "")
        # The specification tells to ignore a path that is not absolute.
        above = Path(wanted) if os.path.isabs(wanted) else home / ".cache"
    return above / "blockswap"


def read_json(path: Path) -> Any:
    """The value in the file, or None where there is no such file or it does not hold JSON."""
    try:
        return load_json(path)
    except (OSError, ValueError):
        return None


def load_json(path: Path) -> Any:
    """The value in a plain file of at most `MOST_BYTES`, without NaN and endless numbers.

    Never waits, as opening a pipe would. Raises OSError, and ValueError for all else.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            raise ValueError("it is no plain file of a few megabytes")
        with open(descriptor, "rb", closefd=False) as file:
            raw = file.read(MOST_BYTES)
    finally:
        os.close(descriptor)
    try:
        return json.loads(raw, parse_constant=_refused, parse_float=_finite, parse_int=_counted)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refused(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused("a number without end")


def _counted(text: str) -> int:
    # Beyond 64 bits nothing is a count of bytes, and a float of it may not exist.
    return int(text) if len(text) < 20 else _refused("a number of over 64 bits")


def write_json_atomically(path: Path, value: Any) -> None:
    """Writes the value so that a reader finds the old file or the new one, never a half.

    Makes the folders above. Raises OutputError where they cannot be written.
    """
    text = json.dumps(value, indent=2, sort_keys=True)
    half: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, half = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".half")
        with open(number, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(half, path)
        half = None
    except OSError as error:
        raise OutputError(
            f"cannot write {path} ({error.strerror or error}): make room, or name another folder "
            f"with {OVERRIDE}"
        ) from error
    finally:
        if half is not None:
            with contextlib.suppress(OSError):
                os.unlink(half)
