"""The seam to the pack ComfyUI-GGUF: what it reads, its layers and its patcher, where it is there.

Nothing of it is imported. It is found through the loader node that it registers; what that node's
module works with is what a file is opened by here, too.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch

from ...errors import HostError, ModelError
from ...layout.checkpoint import Checkpoint
from . import host

LOADER = "Unet Loader (GGUF)"
_NODE = "UnetLoaderGGUF"
# What its loader works with: reads a file, makes layers, keeps patches as notes.
_READ, _LAYERS, _PATCHER = "gguf_sd_loader", "GGMLOps", "GGUFModelPatcher"
NAMES = (_READ, _LAYERS, _PATCHER)


def read(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors of a file as the pack has them, mapped and not read.

    Raises ModelError where the pack is not there or does not take the file, HostError for a version
    of it that lacks one of NAMES.
    """
    (path,) = checkpoint.paths
    function = _found(checkpoint.label)[_READ]
    try:
        read: Any = function(str(path))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{checkpoint.label} is not taken by the pack ComfyUI-GGUF ({error}): use a GGUF file "
            "of a Wan model"
        ) from error
    weights: dict[str, torch.Tensor] = read[0] if isinstance(read, tuple) else read
    return weights


def layers(label: str) -> Any:
    """The pack's layers, as its plain loader sets them up, for one model alone.

    Its Advanced loader writes its settings on the class that all models share. A linear also keeps
    whether the model wants a bias, which the pack's forgets.
    """
    pack: Any = _found(label)[_LAYERS]

    class Linear(pack.Linear):
        dequant_dtype = None
        patch_dtype = None

        def __init__(self, *args: Any, bias: bool = True, **kwargs: Any) -> None:
            super().__init__(*args, bias=bias, **kwargs)
            self.blockswap_wants_bias = bias

    return type(pack.__name__, (pack,), {"Linear": Linear})()


def patcher_of(label: str, plain: Any) -> Any:
    """The pack's patcher for a model that has a plain one."""
    made = _found(label)[_PATCHER].clone(plain)
    made.mmap_released = True  # nothing of the model is mapped: it need not be copied out
    return made


def lacking(root: torch.nn.Module) -> list[str]:
    """Weights of linears that the file lacks or has in another shape: the pack takes any."""
    lost = []
    for path, module in root.named_modules():
        if hasattr(module, "blockswap_wants_bias"):
            linear: Any = module
            if tuple(linear.weight.shape) != (linear.out_features, linear.in_features):
                lost.append(f"{path}.weight")
            if linear.blockswap_wants_bias and linear.bias is None:
                lost.append(f"{path}.bias")
    return lost


def _found(label: str) -> Mapping[str, Any]:
    """What the module of the pack's loader node works with."""
    registered = host.registered(_NODE)
    if registered is None:
        raise ModelError(
            f"{label} is a GGUF file, whose layers belong to the pack ComfyUI-GGUF: install that "
            "pack, or use a bf16, fp16, fp8 or fp8_scaled checkpoint"
        )
    there = vars(sys.modules[registered.__module__])
    for name in NAMES:
        if name not in there:
            raise HostError(
                f"the installed pack ComfyUI-GGUF has no {name}, which a GGUF file is opened "
                f"through: update this pack, or use {LOADER} with WanVideo Block Swap behind it"
            )
    return there
