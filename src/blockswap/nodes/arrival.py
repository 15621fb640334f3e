"""Weight patches (LoRA) on blocks that are read from a file: applied each time a block arrives.

ComfyUI patches a loaded weight once, in fp32 with stochastic rounding, and patches a weight that it
streams itself on the fly, in a coarser way. Here the first way is taken on the fly, so that a model
streamed from its file gives the very bits of the loaded one.
"""

from typing import Any

import torch


class PatchOnArrival:
    """Stands in for ComfyUI's `LowVramPatch` in a module's weight functions."""

    def __init__(self, host_patch: Any, stored_dtype: torch.dtype) -> None:
        self._patch = host_patch
        self._stored_dtype = stored_dtype

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The patched weight, in the dtype in which ComfyUI hands the unpatched one over."""
        import comfy.float
        import comfy.lora
        from comfy.model_patcher import string_to_seed

        patch = self._patch
        seed = string_to_seed(patch.key)
        # From a stored fp8 or half precision number to fp32 nothing is lost on either way.
        full = weight.to(torch.float32, copy=True)
        if patch.convert_func is not None:
            full = patch.convert_func(full, inplace=True)
        full = comfy.lora.calculate_weight(patch.patches[patch.key], full, patch.key)
        if patch.set_func is not None:
            made = patch.set_func(full, seed=seed, return_weight=True)
        else:
            made = comfy.float.stochastic_rounding(full, self._stored_dtype, seed=seed)
        patched: torch.Tensor = made.to(weight.dtype)
        return patched


def patch_on_arrival(module: torch.nn.Module) -> None:
    """Takes over what the host has prepared for patching `module`'s weights at each use."""
    for name in ("weight", "bias"):
        functions: list[Any] = getattr(module, f"{name}_function", [])
        for at, function in enumerate(functions):
            if type(function).__name__ == "LowVramPatch":
                dtype = getattr(module, name).dtype
                functions[at] = PatchOnArrival(function, dtype)


def forget_patches(module: torch.nn.Module) -> None:
    """Takes everything off that the host had prepared on `module`."""
    from comfy.model_patcher import wipe_lowvram_weight

    wipe_lowvram_weight(module)
