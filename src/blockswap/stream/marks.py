"""Timing of block runs by device events: when they are read, reused or lost; 50,000 are kept.

A mark is a set of device events for one visit of one unit. Marks are made once and reused in a
ring; when a mark is needed again its figures are read if its last event has passed, else that
visit goes untimed (and is counted as such). No thread ever waits for an event to be timed.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..events import Counters, Visit
from .device import Device

# About a dozen 14B videos of fifty steps; a visit is some 200 bytes.
KEPT_VISITS = 50_000


class Mark:
    """Events of one visit: copy into the slot, arrival at the wait, start and end of compute.

    `home` is the recorder that made it, and that it goes back to.
    """

    __slots__ = (
        "arrived",
        "copied_bytes",
        "copy_ended",
        "copy_started",
        "ended",
        "forward",
        "has_copy",
        "home",
        "parts",
        "read_ended",
        "read_started",
        "slot",
        "started",
        "tier",
        "unit",
        "waited",
    )

    def __init__(self, device: Device, home: "Recorder") -> None:
        self.home = home
        self.copy_started = device.new_event(timing=True)
        self.copy_ended = device.new_event(timing=True)
        self.arrived = device.new_event(timing=True)
        self.started = device.new_event(timing=True)
        self.ended = device.new_event(timing=True)
        self.clear()

    def clear(self) -> None:
        self.forward = 0
        self.unit = ""
        self.tier = ""
        self.slot: int | None = None
        self.copied_bytes = 0
        self.parts = 1
        self.has_copy = False
        self.waited = False
        self.read_started: float | None = None
        self.read_ended: float | None = None


class Recorder:
    """The ring of marks and the visits read from them. `counters` are exact at any time."""

    def __init__(self, device: Device, marks: int) -> None:
        self._free = deque(Mark(device, self) for _ in range(marks))
        self._pending: deque[Mark] = deque()
        self._visits: deque[Visit] = deque(maxlen=KEPT_VISITS)
        self._device = device
        self._anchor = device.new_event(timing=True)
        self._anchor_seconds = 0.0
        self.counters = Counters()
        self.on_visit: Callable[[Visit], None] | None = None
        self.count_lock = threading.Lock()  # reader threads count, too
        self.restart()

    def restart(self) -> None:
        """Puts second zero of all times at this moment of the current stream."""
        self._anchor.record(self._device.current_stream())
        self._anchor_seconds = 0.0
        self._host_origin = time.perf_counter()

    def host_now(self) -> float:
        """Host seconds since second zero, for reads that no device event sees."""
        return time.perf_counter() - self._host_origin

    def count_copies(self, copies: int, nbytes: int) -> None:
        """Counts one unit's way to the device; reader threads and the forward thread call it."""
        with self.count_lock:
            self.counters.copies += copies
            self.counters.copied_bytes += nbytes

    def take(self) -> Mark:
        """A mark to fill. The oldest visit is read, or given up, when none is left."""
        if not self._free and self._pending:
            self._read_oldest()
        # An interrupt at the wrong moment loses a mark: then, and only then, one is made anew.
        mark = self._free.popleft() if self._free else Mark(self._device, self)
        mark.clear()
        return mark

    def discard(self, mark: Mark) -> None:
        """Gives a mark whose visit never came back to its recorder, mostly this one."""
        mark.home.take_back(mark)

    def take_back(self, mark: Mark) -> None:
        """One of this recorder's own marks may be filled again."""
        self._free.append(mark)

    def completed(self, mark: Mark) -> None:
        """The visit is enqueued to its end; its times are read some time later."""
        self.counters.visits += 1
        self._pending.append(mark)

    def visits(self) -> tuple[Visit, ...]:
        """All visits whose events have passed; call after a synchronisation to get every one."""
        while self._pending and self._pending[0].ended.query():
            self._read_oldest()
        return tuple(self._visits)

    def _read_oldest(self) -> None:
        mark = self._pending.popleft()
        if mark.ended.query():
            if len(self._visits) == KEPT_VISITS:
                self.counters.untimed_visits += 1
            visit = self._visit(mark)
            self._visits.append(visit)
            if self.on_visit is not None:
                self.on_visit(visit)
        else:
            self.counters.untimed_visits += 1
        self._free.append(mark)

    def _visit(self, mark: Mark) -> Visit:
        # Times are chained from one visit to the next: a device reports milliseconds in 32-bit
        # floats, which lose the microseconds after a few hours from one far origin.
        arrived = self._anchor_seconds + self._anchor.elapsed_time(mark.arrived) / 1e3

        def at(event: Any) -> float:
            return float(arrived + mark.arrived.elapsed_time(event) / 1e3)

        visit = Visit(
            forward=mark.forward,
            unit=mark.unit,
            tier=mark.tier,
            slot=mark.slot,
            copied_bytes=mark.copied_bytes,
            parts=mark.parts,
            arrived=arrived,
            started=at(mark.started) if mark.waited else arrived,
            ended=at(mark.ended),
            copy_started=at(mark.copy_started) if mark.has_copy else None,
            copy_ended=at(mark.copy_ended) if mark.has_copy else None,
            read_started=mark.read_started,
            read_ended=mark.read_ended,
        )
        self._anchor, mark.arrived = mark.arrived, self._anchor
        self._anchor_seconds = arrived
        return visit
