"""The seam to the pack ComfyUI-GGUF: what it reads, its layers and its patcher, where it is there.

Nothing of it is imported. It is found through the loader node that it registers; what that node's
module works with is what a file is opened by here, too.
"""

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch

from ...errors import HostError, ModelError
from ...layout.checkpoint import Checkpoint
from . import host
from .gguf import NOTES, is_packed

LOADER = "Unet Loader (GGUF)"
_NODE = "UnetLoaderGGUF"
# What its loader works with: reads a file, makes layers, keeps patches as notes.
_READ, _LAYERS, _PATCHER = "gguf_sd_loader", "GGMLOps", "GGUFModelPatcher"
NAMES = (
    _READ,
    _LAYERS,
    *(f"{_LAYERS}.Linear.{name}" for name in ("dequant_dtype", "patch_dtype")),
    _PATCHER,
    *(f"{_PATCHER}.{name}" for name in ("clone", "mmap_released", "patch_weight_to_device")),
)


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
    _check_notes(checkpoint, weights)
    return weights


def _check_notes(checkpoint: Checkpoint, weights: Mapping[str, torch.Tensor]) -> None:
    """Raises HostError where packed bytes do not say what they are in the words that are known."""
    for name, tensor in weights.items():
        is_stored = tensor.dtype == torch.uint8
        if is_stored and not (is_packed(tensor) and all(hasattr(tensor, n) for n in NOTES)):
            raise HostError(
                f"the installed pack ComfyUI-GGUF reads {name} of {checkpoint.label} as a "
                f"{type(tensor).__name__}, of which it is not known how it is packed: update this "
                f"pack, or use {LOADER} with WanVideo Block Swap behind it"
            )


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
        if not _has(there, name.split(".")):
            raise HostError(
                f"the installed pack ComfyUI-GGUF has no {name}, which a GGUF file is opened "
                f"through: update this pack, or use {LOADER} with WanVideo Block Swap behind it"
            )
    return there


def _has(there: Mapping[str, Any], parts: list[str]) -> bool:
    """Whether a name, or one in a class, is there: the pack's own, not what the host has for it."""
    if parts[0] not in there:
        return False
    found = there[parts[0]]
    for part in parts[1:]:
        kinds = [k for k in inspect.getmro(found) if not k.__module__.startswith("comfy.")]
        if not any(part in vars(kind) for kind in kinds):
            return False
        found = getattr(found, part)
    return True
