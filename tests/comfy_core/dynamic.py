"""Dynamic VRAM of newer cores on the simulated accelerator, over a stand-in for `comfy_aimdo`.

The stand-in never keeps a weight on the device and pins nothing. It covers who owns a weight,
cloning, and what is read how often; not residency, speed or real pins.
"""

from typing import Any

import comfy.model_patcher
import pytest
import torch

HAS_DYNAMIC = hasattr(comfy.model_patcher, "ModelPatcherDynamic")


class _Vbar:
    def __init__(self, *_: Any) -> None:
        self.end = 0

    def alloc(self, nbytes: int) -> tuple[Any, int, int]:
        self.end += nbytes
        return (self, self.end - nbytes, nbytes)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: 0


class _HostBuffer:
    def __init__(self, *_: Any) -> None:
        self.size = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def switch_on(patch: pytest.MonkeyPatch) -> list[str]:
    """Dynamic VRAM as the core's start would switch it on. Returns the files it will have read."""
    import comfy.memory_management
    import comfy.pinned_memory
    import comfy.utils
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    from safetensors.torch import load_file

    vbar = comfy_aimdo.model_vbar
    patch.setattr(vbar, "ModelVBAR", _Vbar)
    patch.setattr(vbar, "vbar_fault", lambda *_: None)
    patch.setattr(vbar, "vbar_signature_compare", lambda *_: False)
    patch.setattr(vbar, "vbar_unpin", lambda *_: None)
    patch.setattr(vbar, "vbars_analyze", lambda *_: 0)
    patch.setattr(comfy_aimdo.host_buffer, "HostBuffer", _HostBuffer)
    patch.setattr(comfy.pinned_memory, "pin_memory", lambda *_, **__: False)
    patch.setattr(comfy.pinned_memory, "get_pin", lambda *_, **__: None)
    read: list[str] = []

    def load(path: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        read.append(path)
        return load_file(path), {}

    patch.setattr(comfy.utils, "load_safetensors", load)
    patch.setattr(comfy.memory_management, "aimdo_enabled", True)
    patch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
    return read
