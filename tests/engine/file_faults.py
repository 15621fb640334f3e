"""What happens to files while they are read: short reads, edits, other files in their place."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

from disk_seam import Read


def a_third(read: Read, view: memoryview, offset: int) -> int:
    return read(view[: max(1, len(view) // 3)] if len(view) > 1000 else view)


def broken(read: Read, view: memoryview, offset: int) -> int:
    raise OSError(errno.EIO, "Input/output error")


def touched(path: Path) -> None:
    os.utime(path, ns=(0, 0))


def grown(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


def in_thread(call: Callable[[], None]) -> list[BaseException]:
    """Runs `call` in a thread of its own; what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return raised
