"""The only file that names an accelerator API: streams, events, pinned and huge-page memory.

Two kinds of device stand behind one face. An `Accelerator` is whatever `torch.accelerator` knows
(CUDA, ROCm, XPU, ...): copies run on a stream of their own and events order them against compute.
A `Host` is the CPU: nothing is asynchronous, so a stream is a token and an event a time stamp.
"""

import contextlib
import mmap
import time
from typing import Any, Protocol

import torch

from ..errors import DeviceError, PlanError
from ..store.file_slab import SECTOR
from ..store.host_memory import free_host_bytes, total_host_bytes
from ..units import format_bytes
from .peaks import note_peak


class Event(Protocol):
    """A point in a stream's work. The same object is recorded again and again."""

    def record(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool: ...

    def elapsed_time(self, end: Any) -> float: ...


class Device(Protocol):
    """Where blocks compute. Streams are opaque to everyone but the device."""

    torch_device: torch.device
    on_host: bool
    granularity: int  # bytes to which the allocator rounds

    def current_stream(self) -> Any: ...

    def new_stream(self) -> Any: ...

    def new_event(self, *, timing: bool) -> Event: ...

    def wait(self, stream: Any, event: Event) -> None: ...

    def on(self, stream: Any) -> contextlib.AbstractContextManager[Any]: ...

    def allocate(self, nbytes: int) -> torch.Tensor: ...

    def allocate_slot(self, nbytes: int) -> torch.Tensor: ...

    def pin(self, nbytes: int) -> torch.Tensor | None: ...

    def lock(self, memory: torch.Tensor) -> bool: ...

    def unlock(self, memory: torch.Tensor) -> None: ...

    def synchronize(self) -> None: ...

    def release_cached_host_memory(self) -> None: ...

    def free_bytes(self) -> int | None: ...

    def total_bytes(self) -> int | None: ...

    def model_name(self) -> str: ...

    def reset_peak(self) -> None: ...

    def peak_bytes(self) -> int | None: ...

    def allocated_bytes(self) -> int: ...

    def used_on(self, memory: torch.Tensor, stream: Any) -> None: ...

    def empty_cache(self) -> None: ...

    def random_state(self) -> torch.Tensor | None: ...

    def restore_random_state(self, state: torch.Tensor | None) -> None: ...


def host_buffer(nbytes: int) -> torch.Tensor:
    """Page-aligned host memory, uint8 `[nbytes]`, that goes back to the system when dropped.

    The mapping is shared, as direct reads want it: while one into private memory is under way, a
    fork (any subprocess started by another thread) could divert it (open(2), O_DIRECT).
    """
    if nbytes == 0:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(_mapped(nbytes), dtype=torch.uint8)


def _mapped(nbytes: int, **how: int) -> mmap.mmap:
    """Raises PlanError where the system has no such memory."""
    try:
        return mmap.mmap(-1, nbytes, **how)
    except (OSError, OverflowError, ValueError, MemoryError) as error:
        raise _no_memory(nbytes) from error


def _no_memory(nbytes: int) -> PlanError:
    """The refusal of a buffer in host memory."""
    free = free_host_bytes()
    told = "it does not tell how much is free" if free is None else f"{format_bytes(free)} is free"
    return PlanError(
        f"a buffer of {format_bytes(nbytes)} in host memory was refused by the "
        f"system, {told}: close other programs, or keep fewer blocks in memory"
    )


def huge_page_buffer(nbytes: int) -> torch.Tensor:
    """Host memory for direct reads in huge pages where the system has them, else `host_buffer`.

    A read into huge pages is a few long transfers instead of thousands of short ones: a tenth
    faster where the disk binds, and a tenth of the kernel's time on cores that the forward needs.
    Shared mappings get no huge pages by default, private ones do; a fork cannot divert a read
    into this one either, because the child does not get it.
    """
    if nbytes == 0 or not (hasattr(mmap, "MADV_HUGEPAGE") and hasattr(mmap, "MADV_DONTFORK")):
        return host_buffer(nbytes)
    memory = _mapped(nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_DONTFORK)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel built without huge pages
        return host_buffer(nbytes)
    return torch.frombuffer(memory, dtype=torch.uint8)


def aligned(memory: torch.Tensor, nbytes: int) -> torch.Tensor:
    """The first `nbytes` of `memory` that begin at a sector boundary."""
    return memory.narrow(0, -memory.data_ptr() % SECTOR, nbytes)


class HostEvent:
    """A time stamp that looks like a device event."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0

    def record(self, stream: Any) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        """On the host everything recorded has already happened."""

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "HostEvent") -> float:
        return (end.seconds - self.seconds) * 1e3


class Host:
    """The CPU as compute device: blocks run where they are read or where they lie."""

    on_host = True
    granularity = SECTOR

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")

    def current_stream(self) -> None:
        return None

    def new_stream(self) -> None:
        return None

    def new_event(self, *, timing: bool) -> Event:
        return HostEvent()

    def wait(self, stream: Any, event: Event) -> None:
        """Nothing to wait for: work on the host is done when the call returns."""

    def on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu")

    def allocate_slot(self, nbytes: int) -> torch.Tensor:
        """Memory that files are read into."""
        return huge_page_buffer(nbytes)

    def pin(self, nbytes: int) -> torch.Tensor | None:
        return None

    def lock(self, memory: torch.Tensor) -> bool:
        return False

    def unlock(self, memory: torch.Tensor) -> None:
        """Nothing is locked for the host itself."""

    def synchronize(self) -> None:
        """Nothing is under way."""

    def release_cached_host_memory(self) -> None:
        """Host buffers go back to the system by themselves."""

    def free_bytes(self) -> int | None:
        return free_host_bytes()

    def total_bytes(self) -> int | None:
        return total_host_bytes()

    def model_name(self) -> str:
        return "cpu"

    def reset_peak(self) -> None:
        """The host keeps no peak that could be reset."""

    def peak_bytes(self) -> int | None:
        return None

    def allocated_bytes(self) -> int:
        return 0

    def used_on(self, memory: torch.Tensor, stream: Any) -> None:
        """Work on the host is done when the call returns."""

    def empty_cache(self) -> None:
        """Nothing is kept for later."""

    def random_state(self) -> torch.Tensor | None:
        return None

    def restore_random_state(self, state: torch.Tensor | None) -> None:
        """The host's own generator is torch's, not this device's."""


class Accelerator:
    """The device that `torch.accelerator` speaks for."""

    on_host = False
    granularity = 512

    def __init__(self, device: torch.device) -> None:
        self.torch_device = device

    def current_stream(self) -> torch.Stream:
        return torch.accelerator.current_stream(self.torch_device)

    def new_stream(self) -> torch.Stream:
        return torch.Stream(self.torch_device)

    def new_event(self, *, timing: bool) -> Event:
        event: Event = torch.Event(self.torch_device, enable_timing=timing)
        return event

    def wait(self, stream: torch.Stream, event: Any) -> None:
        stream.wait_event(event)

    def on(self, stream: torch.Stream) -> contextlib.AbstractContextManager[Any]:
        context: contextlib.AbstractContextManager[Any] = stream
        return context

    def allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device)

    def allocate_slot(self, nbytes: int) -> torch.Tensor:
        return self.allocate(nbytes)

    def pin(self, nbytes: int) -> torch.Tensor | None:
        """Pinned host memory, uint8 `[nbytes]`; None when the system will not lock that much."""
        try:
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        except RuntimeError:
            return None

    def lock(self, memory: torch.Tensor) -> bool:
        """Pins host memory that is there already; False where this device's runtime cannot.

        CUDA and ROCm can (cudaHostRegister, portable, as torch's own shared state dicts do).
        """
        runtime = self._runtime()
        if runtime is None:
            return False
        return int(runtime.cudaHostRegister(memory.data_ptr(), memory.numel(), 1)) == 0

    def unlock(self, memory: torch.Tensor) -> None:
        """Unpins what `lock` pinned, before it is unmapped; no copy may be under way."""
        runtime = self._runtime()
        if runtime is not None:
            runtime.cudaHostUnregister(memory.data_ptr())

    def _runtime(self) -> Any:
        made: Any = getattr(torch.get_device_module(self.torch_device), "cudart", None)
        return None if made is None else made()

    def synchronize(self) -> None:
        torch.accelerator.synchronize(self.torch_device)

    def release_cached_host_memory(self) -> None:
        """Unpins what torch's host allocator keeps for later (torch 2.12 and newer can)."""
        empty = getattr(torch.accelerator, "empty_host_cache", None)
        if empty is not None:
            empty()

    def free_bytes(self) -> int | None:
        info: Any = getattr(torch.accelerator, "get_memory_info", None)  # torch 2.10 and newer
        return None if info is None else int(info(self.torch_device)[0])

    def total_bytes(self) -> int | None:
        info: Any = getattr(torch.accelerator, "get_memory_info", None)  # torch 2.10 and newer
        return None if info is None else int(info(self.torch_device)[1])

    def model_name(self) -> str:
        """What the vendor calls it ("NVIDIA GeForce RTX 4090"), or the kind of device."""
        backend = torch.get_device_module(self.torch_device)
        named: Any = getattr(backend, "get_device_name", None)
        return self.torch_device.type if named is None else str(named(self.torch_device))

    def reset_peak(self) -> None:
        note_peak(self.torch_device, self.peak_bytes())
        torch.accelerator.reset_peak_memory_stats(self.torch_device)

    def peak_bytes(self) -> int:
        return int(torch.accelerator.max_memory_allocated(self.torch_device))

    def allocated_bytes(self) -> int:
        return int(torch.accelerator.memory_allocated(self.torch_device))

    def used_on(self, memory: torch.Tensor, stream: torch.Stream) -> None:
        """`stream` uses `memory`, made on another: the allocator hands it out after that work."""
        memory.record_stream(stream)

    def empty_cache(self) -> None:
        """Gives memory that the allocator keeps for later back to the device."""
        torch.accelerator.empty_cache()

    def random_state(self) -> torch.Tensor | None:
        """State of the device's own random generator. Waits for nothing on CUDA."""
        module: Any = torch.get_device_module(self.torch_device)
        state: torch.Tensor = module.get_rng_state(self.torch_device)
        return state

    def restore_random_state(self, state: torch.Tensor | None) -> None:
        if state is not None:
            module: Any = torch.get_device_module(self.torch_device)
            module.set_rng_state(state, self.torch_device)


def best_device() -> torch.device:
    """The accelerator that torch would use, or the CPU where there is none."""
    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if present is None else present


def open_device(device: str | torch.device) -> Device:
    """The device to compute on. Raises DeviceError when it is not there."""
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(
            f'device "{device}" was asked for, which torch does not know: name one such as "cpu" '
            'or "cuda:0"'
        ) from error
    if wanted.type == "cpu":
        return Host()
    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if present is None or present.type != wanted.type:
        there = "only the CPU is there" if present is None else f"{present.type} is there"
        raise DeviceError(f"device {wanted} was asked for, but {there}: name a device that exists")
    count = torch.accelerator.device_count()
    index = wanted.index if wanted.index is not None else torch.accelerator.current_device_index()
    if index >= count:
        raise DeviceError(
            f"device {wanted} was asked for, but there are {count} {wanted.type} devices, numbered "
            f"from 0: name one of them"
        )
    return Accelerator(torch.device(wanted.type, index))
