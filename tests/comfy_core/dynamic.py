"""Dynamic VRAM of newer cores on the simulated accelerator, over a stand-in for `comfy_aimdo`.

Files are mapped as the core maps them, and the core's own code pins host memory in a stand-in of
its host buffers, which is real memory. No fault ever succeeds: no weight stays on the device. So
this covers who owns a weight, cloning, what is read how often and host memory; not residency or
speed.
"""

import ctypes
import mmap
from typing import Any

import comfy.model_patcher
import pytest
import torch

HAS_DYNAMIC = hasattr(comfy.model_patcher, "ModelPatcherDynamic")


class Vbar:
    """Hands out places, none of which is ever filled."""

    def __init__(self, size: int, *_: Any) -> None:
        self.size, self.end = size, 0

    def alloc(self, nbytes: int) -> tuple[Any, int, int]:
        self.end += nbytes
        if self.end > self.size:
            raise MemoryError("VBAR OOM")
        return (self, self.end - nbytes, nbytes)

    def prioritize(self) -> None: ...

    def loaded_size(self) -> int:
        return 0

    def free_memory(self, _: float) -> int:
        return 0


class HostBuffer:
    """Address space that becomes memory where it is written to, until it is truncated."""

    def __init__(self, size: int, prewarm: int = 0, most: int = 0) -> None:
        self.size = size
        self._memory = mmap.mmap(-1, max(size, most, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def get_raw_address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def extend(self, size: int, register: bool = True) -> None:
        if self.size + size > len(self._memory):
            raise RuntimeError("HostBuffer.extend failed")
        self.size += size

    def truncate(self, size: int, do_unregister: bool = True) -> None:
        start = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        if start < len(self._memory):
            self._memory.madvise(mmap.MADV_DONTNEED, start)
        self.size = size


class Mapping:
    """A file in memory, read only."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)

    def get(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def get_file_handle(self) -> None:
        return None

    def bounce(self) -> None: ...


class Registrations:
    """CUDA's page locking, which the core asks for by address."""

    def cudaHostRegister(self, *_: Any) -> int:
        return 0

    def cudaHostUnregister(self, *_: Any) -> int:
        return 0


def switch_on(patch: pytest.MonkeyPatch) -> list[str]:
    """Dynamic VRAM as the core's start would switch it on. Returns the files it will have read."""
    import comfy.memory_management
    import comfy.model_management as management
    import comfy.utils
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_mmap
    import comfy_aimdo.model_vbar

    vbar = comfy_aimdo.model_vbar
    patch.setattr(vbar, "ModelVBAR", Vbar)
    patch.setattr(vbar, "vbar_fault", lambda *_: None)
    patch.setattr(vbar, "vbar_signature_compare", lambda *_: False)
    patch.setattr(vbar, "vbar_unpin", lambda *_: None)
    patch.setattr(vbar, "vbars_analyze", lambda *_: 0)
    patch.setattr(comfy_aimdo.host_buffer, "HostBuffer", HostBuffer)
    patch.setattr(comfy_aimdo.model_mmap, "ModelMMAP", Mapping)
    patch.setattr(torch.cuda, "cudart", Registrations)
    patch.setattr(management, "MAX_PINNED_MEMORY", 1 << 34)
    patch.setattr(management, "TOTAL_PINNED_MEMORY", 0)
    read: list[str] = []
    original = comfy.utils.load_safetensors

    def load(path: str) -> Any:
        read.append(path)
        return original(path)

    patch.setattr(comfy.utils, "load_safetensors", load)
    patch.setattr(comfy.memory_management, "aimdo_enabled", True)
    patch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
    return read
