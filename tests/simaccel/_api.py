"""The functions a test calls: configuration, clocks, counters, annotations."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch

UNLIMITED_BYTES = 1 << 40


def _extension() -> ModuleType:
    return torch.sim._extension


# ---- configuration ------------------------------------------------------------------------------


def configure(
    *,
    h2d_gb_s: float = 10.0,
    d2h_gb_s: float = 10.0,
    pageable_gb_s: float = 5.0,
    disk_gb_s: float = 2.0,
    memory_gb_s: float = math.inf,
    flops: float = math.inf,
    launch_seconds: float = 0.0,
    capacity: int | None = None,
    pinned_capacity: int | None = None,
    mode: Literal["eager", "lazy"] = "eager",
    clock: Literal["virtual", "real"] = "virtual",
    races: Literal["raise", "record", "off"] = "raise",
    unrecorded_waits: Literal["raise", "record", "off"] = "raise",
    poison: bool = True,
    verify_pinned: bool = True,
    trace: bool = False,
) -> None:
    """Sets every option; one that is not given goes back to its default.

    Waits first for all work already enqueued, and keeps clocks and counters (see `reset`).

    h2d_gb_s, d2h_gb_s: pinned copies, 1e9 bytes per second; one engine per direction.
    pageable_gb_s: copies from or to ordinary host memory, on the same engines.
    disk_gb_s: `disk_read`, one disk for all threads.
    memory_gb_s: device memory; an op takes at least (bytes it touches) / this. inf: no time.
    flops: FLOP per second of matmul, attention and convolution. inf: no time.
    launch_seconds: host time per enqueued op.
    capacity: bytes of device memory; beyond it torch.OutOfMemoryError. None: no limit.
    pinned_capacity: bytes that may be pinned, counted as `locked_bytes`; beyond it RuntimeError.
    mode: "eager" runs work as soon as it can; "lazy" only while the host waits for it.
    clock: "virtual" computes times; "real" also makes workers sleep to the configured rates,
        and `torch.Event.elapsed_time` returns measured milliseconds.
    races: raise where the second access is enqueued; only list them in `races()`; or no detection.
    unrecorded_waits: the same choice for waits on an event that was never recorded.
    poison: fill new and freed memory with 0xFF, a NaN in every floating-point type.
    verify_pinned: check that the bytes of a pinned source are the same when an asynchronous copy
        runs as when it was enqueued (finds host writes nobody annotated).
    trace: keep a record of every operation for `trace()`.
    """
    _check_choice("mode", mode, ("eager", "lazy"))
    _check_choice("clock", clock, ("virtual", "real"))
    _check_choice("races", races, ("raise", "record", "off"))
    _check_choice("unrecorded_waits", unrecorded_waits, ("raise", "record", "off"))
    _extension().configure(
        {
            "h2d": h2d_gb_s * 1e9,
            "d2h": d2h_gb_s * 1e9,
            "pageable": pageable_gb_s * 1e9,
            "disk": disk_gb_s * 1e9,
            "memory": memory_gb_s * 1e9,
            "flops": flops,
            "launch_seconds": launch_seconds,
            "capacity": UNLIMITED_BYTES if capacity is None else capacity,
            "pinned_capacity": UNLIMITED_BYTES if pinned_capacity is None else pinned_capacity,
            "lazy": mode == "lazy",
            "real_clock": clock == "real",
            "races": races,
            "unrecorded_waits": unrecorded_waits,
            "poison": poison,
            "verify_pinned": verify_pinned,
            "trace": trace,
        }
    )


def reset() -> None:
    """Runs all enqueued work, then starts from zero.

    Clocks of all threads, counters, peaks, races (also one not raised yet), trace, stream names and
    cached memory. Live tensors stay, with no access history; new streams are numbered from 1 again.
    The configuration stays.
    """
    _extension().reset()


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")


# ---- time ---------------------------------------------------------------------------------------


class Clock:
    """Virtual time in seconds since the last reset.

    Every host thread has its own "now", which starts at 0, advances by `launch_seconds` per op, by
    `advance_host` and `disk_read`, and to the end of what it waits for. Threads that hand work to
    each other hand over their time with `mark` and `join`.
    """

    def now(self) -> float:
        """The calling thread's "now"."""
        return _extension().host_now()

    def advance_host(self, seconds: float) -> None:
        """The calling thread is busy for `seconds`."""
        _extension().advance_host(seconds)

    def mark(self) -> float:
        """A token for another thread's `join`: what happens there comes after now, here."""
        return _extension().host_now()

    def join(self, token: float) -> None:
        """The calling thread's "now" becomes no earlier than the token's."""
        _extension().join_host(token)

    def device_end(self) -> float:
        """The end of the last operation enqueued on any stream so far."""
        return _extension().device_end()


clock = Clock()


def advance_host(seconds: float) -> None:
    """Same as `clock.advance_host`."""
    clock.advance_host(seconds)


def disk_read(nbytes: int) -> float:
    """The calling thread reads `nbytes` from the one disk and waits for them.

    Starts when both the thread and the disk are free, takes nbytes / disk_gb_s, and returns the
    thread's new "now".
    """
    return _extension().disk_read(nbytes)


def compute(
    seconds: float,
    *,
    reads: Sequence[torch.Tensor] = (),
    writes: Sequence[torch.Tensor] = (),
    name: str = "compute",
) -> None:
    """Enqueues an op on the current stream that takes exactly `seconds` of device time.

    It computes nothing, but counts as an op and as an access to the given sim tensors.
    """
    _extension().compute(seconds, list(reads), list(writes), name)


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """One operation of `trace()`. `stream` is -1 for a disk read."""

    name: str
    stream: int
    start_seconds: float
    end_seconds: float
    nbytes: int


def trace() -> list[TraceRecord]:
    """All operations since the last reset in the order of enqueueing (needs `trace=True`)."""
    return [TraceRecord(*record) for record in _extension().trace()]


# ---- races --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two accesses of a race: bytes [begin, end) of the allocation."""

    op: str
    stream: str
    write: bool
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Race:
    """What the detector found.

    kind: "read-after-write", "write-after-read", "write-after-write", "use-after-free",
        "free-without-record_stream", "pinned-source-changed" or "wait-on-unrecorded-event".
    label: the name given with `label`, if any.
    """

    kind: str
    message: str
    label: str
    earlier: Side
    later: Side


def races() -> list[Race]:
    """Everything found since the last reset, whether it was raised or not."""
    return [
        Race(kind, message, label, Side(*earlier), Side(*later))
        for kind, message, label, earlier, later in _extension().races()
    ]


def label(target: torch.Tensor | torch.Stream, text: str) -> None:
    """Names a tensor's bytes (sim or pinned) or a stream in race messages.

    Where several labels touch the bytes of a race, the narrowest is told.
    """
    if isinstance(target, torch.Stream):
        _extension().label_stream(target.stream_id, text)
    else:
        address, nbytes = _byte_range(target)
        _extension().label_bytes(address, nbytes, text)


def host_write(target: torch.Tensor | tuple[int, int], name: str = "host write") -> None:
    """Tells the detector that the host is about to write pinned memory behind torch's back.

    For writes that are no torch operation: readinto, preadv, numpy, memoryview. `target` is a CPU
    tensor or a pair (address, nbytes). Memory that is not pinned is ignored.
    """
    _host_access(target, True, name)


def host_read(target: torch.Tensor | tuple[int, int], name: str = "host read") -> None:
    """The same for a read."""
    _host_access(target, False, name)


def _host_access(target: torch.Tensor | tuple[int, int], write: bool, name: str) -> None:
    address, nbytes = target if isinstance(target, tuple) else _byte_range(target)
    _extension().host_access(address, nbytes, write, name)


def _byte_range(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    nbytes = (last + 1) * tensor.element_size() if tensor.numel() else 0
    return tensor.data_ptr(), nbytes


# ---- counters -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counters:
    """A snapshot; counts are since the last reset, bytes are current or peak.

    A copy that is not pinned counts both as h2d or d2h and as pageable. Waiting for a blocking copy
    is a host sync. `probes` are waits of the simulator itself (an op whose shapes only its kernel
    knows): no host sync on a real device.
    """

    ops: int
    h2d_copies: int
    h2d_bytes: int
    d2h_copies: int
    d2h_bytes: int
    d2d_copies: int
    d2d_bytes: int
    pageable_copies: int
    pageable_bytes: int
    blocking_copies: int
    events_recorded: int
    event_waits: int
    event_queries: int
    stream_syncs: int
    event_syncs: int
    device_syncs: int
    item_syncs: int
    blocking_copy_syncs: int
    allocator_syncs: int
    host_syncs_by_thread: dict[int, int]
    probes: int
    device_allocations: int
    device_frees: int
    device_bytes: int
    device_bytes_peak: int
    pinned_allocations: int
    pinned_bytes: int
    pinned_bytes_peak: int
    pinned_locked_bytes: int
    pinned_locked_bytes_peak: int

    @property
    def host_syncs(self) -> int:
        """How often any host thread waited for the device."""
        return sum(self.host_syncs_by_thread.values())

    @property
    def host_syncs_here(self) -> int:
        """How often the calling thread did."""
        return self.host_syncs_of(threading.get_ident())

    def host_syncs_of(self, thread: int | threading.Thread) -> int:
        """How often one thread did (a Thread or its `ident`)."""
        ident: Any = thread.ident if isinstance(thread, threading.Thread) else thread
        return self.host_syncs_by_thread.get(ident, 0)


def counters() -> Counters:
    """A snapshot of all counters."""
    return Counters(**_extension().counters())


def locked_bytes(nbytes: int) -> int:
    """What pinning `nbytes` locks: torch's host allocator rounds up to a power of two."""
    return _extension().locked_bytes(nbytes)
