"""Places where a test looks into the engine, or makes one of its steps fail or wait.

Everything is patched from outside with pytest's monkeypatch; the package has no test hooks.
"""

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from blockswap.store import disk
from blockswap.stream.device import Accelerator
from blockswap.stream.pool import pool as pool_module
from blockswap.stream.pool.pool import Pool, Slot
from blockswap.swap.assembly import unpinned as assemble
from blockswap.swap.running.residency import Residency


def announce_host_writes(monkeypatch: pytest.MonkeyPatch, sim: ModuleType) -> None:
    """Tells the race detector of the writes that reader threads make behind torch's back."""
    read_piece = disk.DiskStore.read_piece
    host_copy = assemble._HostCopy.__call__

    def announced_read(self: Any, index: int, run: Any, span: tuple[int, int], at: int) -> None:
        sim.host_write((at + run.slab_offset + span[0], span[1]), "file read")
        read_piece(self, index, run, span, at)

    def announced_copy(self: Any) -> None:
        sim.host_write((self.address, self.memory.numel()), "staging copy")
        host_copy(self)

    monkeypatch.setattr(disk.DiskStore, "read_piece", announced_read)
    monkeypatch.setattr(assemble._HostCopy, "__call__", announced_copy)


def collect_pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    """The pools made from now on, in order."""
    made: list[Pool] = []
    init = pool_module.Pool.__init__

    def collecting(self: Pool, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(pool_module.Pool, "__init__", collecting)
    return made


def collect_residencies(monkeypatch: pytest.MonkeyPatch) -> list[Residency]:
    """The residencies of swaps opened from now on, in order; closed ones are of no use."""
    made: list[Residency] = []
    init = Residency.__init__

    def collecting(self: Residency, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Residency, "__init__", collecting)
    return made


def wait_for_readers(pool: Pool) -> None:
    """Until every read asked for is done and its copy enqueued; the device is not waited for."""
    for job in (*(slot.job for slot in pool.slots), *(s.read for s in pool.staging)):
        assert job is None or job.wait(30)


class DeafEvent:
    """A device event whose `record` or `synchronize` is taken out."""

    def __init__(self, real: Any, *, records: int = 0, synchronizes: bool = True) -> None:
        self.real = real
        self._records = records
        self._synchronizes = synchronizes

    def record(self, stream: Any) -> None:
        if self._records > 0:
            self._records -= 1
            self.real.record(stream)

    def synchronize(self) -> None:
        if self._synchronizes:
            self.real.synchronize()

    def query(self) -> bool:
        return bool(self.real.query())


def drop_waits(
    monkeypatch: pytest.MonkeyPatch, dropped: Callable[[Any, Any], bool]
) -> list[tuple[Any, Any]]:
    """Takes out every `device.wait(stream, event)` for which `dropped` is true; returns them."""
    gone: list[tuple[Any, Any]] = []
    wait = Accelerator.wait

    def selective(self: Accelerator, stream: Any, event: Any) -> None:
        if dropped(stream, event):
            gone.append((stream, event))
        else:
            wait(self, stream, getattr(event, "real", event))

    monkeypatch.setattr(Accelerator, "wait", selective)
    return gone


def is_event(pools: list[Pool], event: Any, name: str) -> bool:
    """Whether `event` is the `name` event ("ready", "free") of some slot."""
    return any(getattr(slot, name) is event for pool in pools for slot in pool.slots)


def replace_event(slot: Slot, name: str, **how: Any) -> None:
    """Puts a `DeafEvent` in place of a slot's event."""
    setattr(slot, name, DeafEvent(getattr(slot, name), **how))


class Gate:
    """Holds a reader thread in front of, or behind, the reads of one unit."""

    def __init__(self, seconds: float) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()
        self._seconds = seconds

    def hold(self) -> None:
        """Waits until the gate is opened, or its time is up."""
        self.reached.set()
        self.opened.wait(self._seconds)


def stall_reads(
    monkeypatch: pytest.MonkeyPatch,
    *,
    before: dict[str, Callable[[], None]] | None = None,
    after: dict[str, Callable[[], None]] | None = None,
) -> None:
    """Calls `before[unit]` or `after[unit]` around every read of that unit from its file."""
    read_piece = disk.DiskStore.read_piece

    def stalled(self: Any, index: int, *args: Any) -> None:
        name = self._units[index].name
        (before or {}).get(name, _nothing)()
        read_piece(self, index, *args)
        (after or {}).get(name, _nothing)()

    monkeypatch.setattr(disk.DiskStore, "read_piece", stalled)


def _nothing() -> None:
    """No stall."""
