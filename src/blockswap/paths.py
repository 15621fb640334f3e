"""Paths: this module owns turning what a caller names into an absolute path, or into a refusal.

No file system takes a name of any length or with a zero byte, and a relative path needs a current
folder that is still there. Whoever takes a path from outside passes it through here first.
"""

import os
from pathlib import Path

from .errors import CheckpointError, OutputError

NAME_BYTES = 255  # of one name, on every usual file system
# What the longest temporary name adds to that of its file.
_TEMPORARY_BYTES = 13


def input_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path of something to read. Raises CheckpointError."""
    try:
        return _absolute(path)
    except _RefusedError as refused:
        raise CheckpointError(str(refused)) from refused


def output_path(path: str | os.PathLike[str], *, added: int = _TEMPORARY_BYTES) -> Path:
    """The absolute path of something to write, with room for a temporary name beside it that is
    `added` bytes longer. Raises OutputError."""
    try:
        target = _absolute(path)
    except _RefusedError as refused:
        raise OutputError(f"cannot write: {refused}") from refused
    if any(len(os.fsencode(part)) > NAME_BYTES for part in target.parent.parts):
        raise OutputError(
            f"cannot write {_shown(target)}: one of its folders has a name of more than "
            f"{NAME_BYTES} bytes, which no file system takes: check the path"
        )
    if len(os.fsencode(target.name)) + added > NAME_BYTES:
        raise OutputError(
            f"cannot write {_shown(target)}: its name has {len(os.fsencode(target.name))} bytes, "
            f"and {NAME_BYTES - added} fit with a temporary name beside it: choose a shorter one"
        )
    return target


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether something bears the name; a name that no file system takes is nowhere."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


class _RefusedError(ValueError):
    """Why a path is none: a clause that names it."""


def _absolute(path: object) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise _RefusedError(
            f"a file is given by its path as a text, not by {_kind(path)}: give a str or a Path"
        )
    text = str(os.fspath(path))
    if "\0" in text:
        raise _RefusedError(f"{text!r:.200} has a zero byte in its name: check the path")
    try:
        absolute = Path(os.path.abspath(text))
    except FileNotFoundError as error:
        raise _RefusedError(
            f"{text:.200} is relative, and the current folder is gone: go to another folder, or "
            "give the whole path"
        ) from error
    return absolute


def _kind(path: object) -> str:
    return "bytes" if isinstance(path, (bytes, os.PathLike)) else f"a {type(path).__name__}"


def _shown(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"
