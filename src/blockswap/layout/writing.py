"""Writing checkpoints: this module owns what every writer of one shares: header, room, progress."""

import ctypes
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from ..errors import OutputError
from ..units import format_bytes
from .dtypes import CODES
from .header import LENGTH_BYTES, METADATA_KEY
from .slab import align_up

Progress = Callable[[int, int], None]

_HEADER_ALIGNMENT = 8
# Of renameat2(2).
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


class Described(Protocol):
    """A tensor to be written: `dtype` as torch spells it, `nbytes` in bytes."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


def header_bytes(
    metadata: Mapping[str, str],
    tensors: Iterable[Described],
    *,
    alignment: int = _HEADER_ALIGNMENT,
) -> bytes:
    """The first bytes of a safetensors file whose tensors follow in this order, without a gap.

    Spaces fill it up, as the format allows, so that the data begins at a multiple of `alignment`.
    """
    entries: dict[str, object] = {METADATA_KEY: dict(metadata)} if metadata else {}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        entries[tensor.name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(align_up(LENGTH_BYTES + len(text), alignment) - LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def check_parent(target: Path) -> None:
    """Raises OutputError where the folder that `target` is to lie in is not there."""
    if not target.parent.is_dir():
        raise OutputError(
            f"cannot write {target}: the folder {target.parent} is not there, create it first"
        )


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises OutputError where the disk of `folder` has less than `needed_bytes` free."""
    # What is overwritten stays until the new files are whole, so its room does not count.
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise OutputError(
            f"the checkpoint takes {format_bytes(needed_bytes)}, {folder} has "
            f"{format_bytes(free_bytes)} free: free {format_bytes(needed_bytes - free_bytes)} or "
            "choose another disk"
        )


def refuse_occupied(target: Path, *, overwrite: bool) -> None:
    """Raises OutputError where something of the name `target` is there that may not go."""
    if not os.path.lexists(target):
        return
    mode = os.lstat(target).st_mode
    if stat.S_ISDIR(mode):
        raise OutputError(
            f"cannot write {target}: a folder of this name is there, choose another name"
        )
    if not overwrite:
        raise OutputError(
            f"cannot write {target}: it is there already, choose another name or let it be "
            "replaced with --overwrite (in Python overwrite=True)"
        )
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise OutputError(
            f"cannot write {target}: a device, a pipe or a socket of this name is there, choose "
            "another name"
        )


def put_in_place(part: Path, target: Path, *, overwrite: bool) -> None:
    """Gives the finished file its name in one step.

    Without `overwrite` nothing that came to the name meanwhile is lost: raises FileExistsError.
    """
    if overwrite:
        part.replace(target)
        return
    if _renamed_without_replacing(part, target):
        return
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: to look once more is all that is left
        if os.path.lexists(target):
            raise FileExistsError(f"{target} is there already") from None
        part.replace(target)
        return
    part.unlink()


def _renamed_without_replacing(part: Path, target: Path) -> bool:
    """Whether the system has a rename that replaces nothing, and it was done."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    first, second = (ctypes.c_char_p(os.fsencode(path)) for path in (part, target))
    if rename(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_NOREPLACE) == 0:
        return True
    if os.path.lexists(target):
        raise FileExistsError(f"{target} is there already")
    return False  # an older system, or a file system that cannot


class Meter:
    """Counts bytes and tells whoever asked, at most once for each part in a thousand."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress = total, progress
        self._done = self._told = 0

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        due = (self._done - self._told) * 1000 >= self._total or self._done == self._total
        if self._progress is not None and due:
            self._told = self._done
            self._progress(self._done, self._total)
