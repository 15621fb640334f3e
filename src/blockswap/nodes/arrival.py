"""Weight patches (LoRA) on blocks that are read from a file: applied each time a block arrives.

ComfyUI patches a loaded weight once, in fp32 with stochastic rounding, and patches a weight that it
streams itself on the fly, in a coarser way. Here the first way is taken on the fly, so that a model
streamed from its file gives the very bits of the loaded one.
"""

from typing import Any

import torch

from . import host


class PatchOnArrival:
    """Stands in for ComfyUI's `LowVramPatch` in a module's weight functions."""

    def __init__(self, host_patch: Any, stored_dtype: torch.dtype) -> None:
        self._patch = host_patch
        self._stored_dtype = stored_dtype

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The patched weight, in the dtype in which ComfyUI hands the unpatched one over."""
        made = host.patched(self._patch, weight, self._stored_dtype)
        return made.to(weight.dtype)


def patch_on_arrival(module: torch.nn.Module) -> None:
    """Takes over what the host has prepared for patching `module`'s weights at each use."""
    for name in ("weight", "bias"):
        functions: list[Any] = getattr(module, f"{name}_function", [])
        for at, function in enumerate(functions):
            if host.is_noted_patch(function):
                dtype = getattr(module, name).dtype
                functions[at] = PatchOnArrival(function, dtype)
