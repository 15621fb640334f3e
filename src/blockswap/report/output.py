"""How a report file is written: whole or not at all, and never over what is no report."""

import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..errors import OutputError
from ..layout.writing import check_parent, put_in_place
from ..paths import output_path

PNG, MP4, TRACE = "a PNG picture", "an MP4 video", "a trace"
# How files of these kinds begin.
_BEGINNINGS = {
    PNG: re.compile(rb"\x89PNG\r\n\x1a\n"),
    MP4: re.compile(rb".{4}ftyp", re.DOTALL),
    TRACE: re.compile(rb'\s*\{\s*"traceEvents"'),
}
_HEAD_BYTES = 64


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill a file beside `path`, then puts it in its place in one step.

    A failed write leaves what was at `path` as it was, and no other file. Raises OutputError
    where the folder is not there, the file cannot be written, or something else than an older
    file of the same kind has the name.
    """
    target = output_path(path)
    check_parent(target)
    partial = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        with partial.open("xb") as file:
            write(file)
        replaces = os.path.lexists(target)
        refuse_other(target, _kind_of(partial))
        put_in_place(partial, target, overwrite=replaces)
    except OutputError:
        raise
    except OSError as error:
        cause = error.strerror or str(error)
        raise OutputError(
            f"cannot write {target}: {cause}, choose a folder with room that you may write to"
        ) from error
    finally:
        # Gone already after the replacement; still there after a failure or a Ctrl-C.
        partial.unlink(missing_ok=True)


def refuse_other(target: Path, kind: str | None) -> None:
    """Raises OutputError unless the name is free, or that of an empty file or one of `kind`."""
    if not os.path.lexists(target):
        return
    status = os.lstat(target)
    if stat.S_ISDIR(status.st_mode):
        what = "a folder"
    elif not stat.S_ISREG(status.st_mode):
        what = "a link, a device or a pipe"
    elif status.st_size == 0 or (kind is not None and _kind_of(target) == kind):
        return
    else:
        what = f"a file that is not {kind or 'of this kind'}"
    raise OutputError(
        f"cannot write {target}: {what} is there and would be lost, choose another name or "
        "remove it first"
    )


def _kind_of(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return next((kind for kind, begins in _BEGINNINGS.items() if begins.match(head)), None)
