"""How a report file is written: whole or not at all, with a refusal in one sentence."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..errors import OutputError


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill a file beside `path`, then puts it in its place in one step.

    A failed write leaves what was at `path` as it was, and no other file. Raises OutputError
    where the folder is not there or the file cannot be written.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise OutputError(
            f"cannot write {target}: the folder {target.parent} is not there, create it first"
        )
    partial = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        with partial.open("xb") as file:
            write(file)
        partial.replace(target)
    except OSError as error:
        cause = error.strerror or str(error)
        raise OutputError(
            f"cannot write {target}: {cause}, choose a folder with room that you may write to"
        ) from error
    finally:
        # Gone already after the replacement; still there after a failure or a Ctrl-C.
        partial.unlink(missing_ok=True)
