"""The disk as the tests spoil it: every read of a file passes here, by whatever means."""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from blockswap.store import disk
from blockswap.store.file_slab import SECTOR

Read = Callable[[memoryview], int]
# Given the real read, the memory to fill and the byte of the file: what the system call does.
Fault = Callable[[Read, memoryview, int], int]

WAIT_SECONDS = 30.0


class Disk:
    """Spoils the read at byte `at`, while `fault` is set. `seen` are the bytes it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: int | None = None
        self.fault: Fault | None = None
        self.seen: list[int] = []
        self.opening: Callable[[str], object] | None = None  # runs before a plain handle is made
        seam = self
        if hasattr(os, "preadv"):
            real = os.preadv

            def preadv(fd: int, buffers: Any, offset: int) -> int:
                return seam.read(lambda view: real(fd, [view], offset), buffers[0], offset)

            monkeypatch.setattr(os, "preadv", preadv)

        class FileIO(io.FileIO):
            def __init__(self, file: Any, *args: Any, **kwargs: Any) -> None:
                if isinstance(file, str) and seam.opening is not None:
                    seam.opening(file)
                super().__init__(file, *args, **kwargs)

            def readinto(self, buffer: Any) -> int:
                return seam.read(super().readinto, memoryview(buffer), self.tell())

        monkeypatch.setattr(io, "FileIO", FileIO)

    def read(self, real: Any, view: memoryview, offset: int) -> int:
        self.seen.append(offset)
        fault = self.fault
        if fault is not None and (self.at is None or self.at == offset):
            return fault(real, view, offset)
        return real(view) or 0

    def heal(self) -> None:
        self.fault = self.opening = None


def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads of one sector, so that a tiny block takes several as a real one does."""
    monkeypatch.setitem(disk.DiskStore.__init__.__kwdefaults__, "piece_bytes", SECTOR)


def record_reads(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[str]]:
    """Fills in, for each byte that a read begins at, the units it is a read of, in order."""
    owners: dict[int, list[str]] = {}
    read_piece = disk.DiskStore.read_piece

    def recorded(self: Any, index: int, run: Any, span: tuple[int, int], at: int) -> None:
        names = owners.setdefault(run.offset + span[0], [])
        name = self._units[index].name
        if name not in names:
            names.append(name)
        read_piece(self, index, run, span, at)

    monkeypatch.setattr(disk.DiskStore, "read_piece", recorded)
    return owners


@contextmanager
def deadline(seconds: float = 120.0) -> Iterator[None]:
    """Ends a test that hangs by an error in the main thread, wherever it waits."""

    def late(*_: object) -> None:
        raise TimeoutError(f"the test hung for {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class CtrlC:
    """A fault that interrupts the main thread while it waits for this very read."""

    def __init__(self) -> None:
        self.handled = threading.Event()
        self._main = threading.main_thread()

    def __enter__(self) -> "CtrlC":
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def __call__(self, read: Read, view: memoryview, offset: int) -> int:
        if not self.handled.is_set():
            self._until_main_waits()
            signal.pthread_kill(self._main.ident or 0, signal.SIGINT)
            assert self.handled.wait(WAIT_SECONDS)
        return read(view) or 0

    def _interrupt(self, *_: object) -> None:
        self.handled.set()
        raise KeyboardInterrupt

    def _until_main_waits(self) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            frame = sys._current_frames().get(self._main.ident or 0)
            while frame is not None:
                if frame.f_code.co_name == "wait" and "readers" in frame.f_code.co_filename:
                    return
                frame = frame.f_back
            time.sleep(0.001)
        raise AssertionError("the forward never waited for the read")
