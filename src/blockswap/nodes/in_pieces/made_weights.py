"""What memory a layer's call takes for its weight, where the host makes that anew at each call.

A model is followed without data by shells of its layers, whose weights are plain: here a layer
whose weight is unpacked or patched as it is called gets a stand-in that takes as much.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..from_file.arrival import is_patched
from ..seams.gguf import has_patches, is_bytes
from ..seams.host_wan import multiplies_packed

# Bytes for a moment beside each element of the weight that is made. The most of GGML's block types
# as the pack ComfyUI-GGUF unpacks them is 8.2 (IQ4_XS); a quantised tensor is scaled in fp32 at
# most. A patch is added in fp32: the weight, the product of its factors, and that once more scaled;
# what is quantised again is copied more often.
_UNPACKING, _SCALING, _PATCHING, _REQUANTISING = 9, 4, 16, 24


def shell_of_layer(module: Any) -> torch.nn.Module | None:
    """A stand-in for a layer that unpacks or patches its weight at each call; None for others.

    A cast alone is done by the shell of the layer itself.
    """
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or not hasattr(module, "in_features"):
        return None
    patched = is_patched(module) or has_patches(weight)
    packed = is_bytes(weight) or is_traceable_wrapper_subclass(weight)
    if not patched and (not packed or multiplies_packed(module)):
        return None
    beside = _UNPACKING if is_bytes(weight) else _SCALING
    if patched:
        rounded = not is_bytes(weight) and (packed or weight.dtype.itemsize == 1)
        beside = _REQUANTISING if rounded else _PATCHING
    return Linear(module.in_features, module.out_features, module.bias is not None, beside)


class Linear(torch.nn.Module):
    """A linear layer without data that makes its weight at each call."""

    def __init__(self, width: int, rows: int, has_bias: bool, beside: int) -> None:
        super().__init__()
        sizes = {"weight": (rows, width), **({"bias": (rows,)} if has_bias else {})}
        for name, size in sizes.items():
            weight = torch.empty(size, dtype=torch.bfloat16, device="meta")
            self.register_parameter(name, torch.nn.Parameter(weight, requires_grad=False))
        self._beside = beside

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        made = [torch.empty_like(w, dtype=given.dtype) for w in self.parameters()]
        beside = self._beside * made[0].numel()
        torch.empty(beside, dtype=torch.uint8, device=given.device)
        out: torch.Tensor = torch.nn.functional.linear(given, *made)
        return out
