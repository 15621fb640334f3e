"""The journal: this module owns what lets an interrupted conversion go on where it was.

Beside the target `T` lie, until it is whole, `.T.part` (the new file so far) and `.T.journal`:
which files it is made from (size, time, inode, header), which header it has, and how many of its
bytes are certainly on the disk. Nothing of it is believed that does not fit any more.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..cache import read_json
from ..layout.header import FileHeader

_VERSION = 1


class Journal:
    """The journal of one conversion to `target`."""

    def __init__(self, target: Path, headers: tuple[FileHeader, ...], new_header: bytes) -> None:
        self.part = target.with_name(f".{target.name}.part")
        self.path = target.with_name(f".{target.name}.journal")
        self.fresh = target.with_name(f".{target.name}.journal-new")
        self._sources = [_stamp(header) for header in headers]
        self._header = hashlib.sha256(new_header).hexdigest()

    def resumable(self) -> tuple[int, str | None]:
        """(bytes of the part to go on from, why an older part is of no use: None if there is none)

        0 bytes: start anew.
        """
        if not self.path.exists() or not self.part.exists():
            return 0, None
        found = self._read()
        if found is None or found.get("version") != _VERSION:
            return 0, "its journal cannot be read"
        if found.get("sources") != self._sources:
            return 0, "the source was changed since"
        if found.get("header") != self._header:
            return 0, "it was asked for with other options"
        done = found.get("done_bytes")
        if type(done) is not int or not 0 <= done <= self.part.stat().st_size:
            return 0, "its unfinished file was changed since"
        return done, None

    def save(self, done_bytes: int) -> None:
        """Notes that the first `done_bytes` of the part are on the disk. Raises OSError."""
        content = {
            "version": _VERSION,
            "sources": self._sources,
            "header": self._header,
            "done_bytes": done_bytes,
        }
        with self.fresh.open("wb") as file:
            file.write(json.dumps(content).encode())
            file.flush()
            os.fsync(file.fileno())
        self.fresh.replace(self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes journal and part: there is nothing in them worth going on from."""
        self.remove()
        self.part.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        found = read_json(self.path)
        return found if isinstance(found, dict) else None


def _stamp(header: FileHeader) -> dict[str, Any]:
    with open(header.path, "rb") as file:
        raw = file.read(header.data_start)
    stamp = asdict(header.stamp)
    del stamp["ctime_ns"]  # a chmod between two runs is no change
    return {**stamp, "header": hashlib.sha256(raw).hexdigest()}
