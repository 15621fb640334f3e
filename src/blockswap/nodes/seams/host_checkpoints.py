"""The seam to ComfyUI's reading of checkpoints: which model a file is, built in front of it."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ...errors import ModelError


def converted(
    weights: dict[str, torch.Tensor], metadata: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """A state dict with its quantisation in the host's words of today.

    Newer cores rewrite what older files say; older ones read it as it is.
    """
    import comfy.utils

    convert = getattr(comfy.utils, "convert_old_quants", None)
    if convert is None:
        return weights
    made: dict[str, torch.Tensor] = convert(weights, "", metadata=dict(metadata))[0]
    return made


# The weight dtypes that the host's own loader offers: the dtype, and whether it multiplies in fp8.
WEIGHT_DTYPES: Mapping[str, tuple[torch.dtype | None, bool]] = {
    "default": (None, False),
    "fp8_e4m3fn": (torch.float8_e4m3fn, False),
    "fp8_e4m3fn_fast": (torch.float8_e4m3fn, True),
    "fp8_e5m2": (torch.float8_e5m2, False),
}


def detect(
    weights: dict[str, torch.Tensor], metadata: Mapping[str, str], weight_dtype: str = "default"
) -> Any | None:
    """The host's configuration for a state dict (of meta tensors), its compute dtypes set.

    `weight_dtype`: one of `WEIGHT_DTYPES`. What the host takes for a marker of the whole file it
    takes out of `weights`.
    """
    import comfy.model_detection
    import comfy.model_management as management
    import comfy.utils

    count, stored = comfy.utils.calculate_parameters(weights), comfy.utils.weight_dtype(weights)
    config = comfy.model_detection.model_config_from_unet(weights, "", metadata=dict(metadata))
    if config is None:
        return None
    device, kinds = management.get_torch_device(), list(config.supported_inference_dtypes)
    # Newer cores have one mark for every quantised file; of the two of older ones each decides one
    # of the dtypes.
    mixed = _mark(config, "quant_config") or _mark(config, "layer_quant_config")
    lone = _mark(config, "quant_config") or _mark(config, "scaled_fp8")
    asked, fast = WEIGHT_DTYPES[weight_dtype]
    wanted = asked or management.unet_dtype(
        model_params=count, supported_dtypes=kinds, weight_dtype=None if lone else stored
    )
    cast = management.unet_manual_cast(None if mixed else wanted, device, kinds)
    config.set_inference_dtype(wanted, cast)
    if fast:
        config.optimizations["fp8"] = True
    return config


def _mark(config: Any, name: str) -> bool:
    """Whether a mark is set; newer cores answer for marks that they do not have with a warning."""
    return hasattr(type(config), name) and getattr(config, name) is not None


def build(
    config: Any, weights: dict[str, torch.Tensor], layers: Any = None
) -> tuple[Any, list[str], list[str]]:
    """The host's model on meta tensors, as its own loading of `weights` (on meta) would leave it.

    `layers`: another pack's, in place of the host's. Returns it with the names that `weights` lack,
    and those that the model has no place for.
    """
    if layers is not None:
        config.custom_operations = layers
    with plain_layers():
        model = config.get_model(weights, "", device=torch.device("meta"))
        offered = config.process_unet_state_dict(dict(weights))
        _as_the_file_has_them(model.diffusion_model, offered)
        missing, unexpected = model.diffusion_model.load_state_dict(offered, strict=False)
    for path, module in model.diffusion_model.named_modules():
        if vars(module).get("weight", module) is None:  # a quantised layer that found no weight
            missing.append(f"{path}.weight")
    return model, list(missing), list(unexpected)


def _as_the_file_has_them(root: torch.nn.Module, offered: Mapping[str, Any]) -> None:
    """Weights that a class has made with values, wherever it was built, give way to the file's."""
    for path, module in root.named_modules():
        for name, weight in module.named_parameters(path, recurse=False):
            if name in offered and not weight.is_meta:
                given = torch.nn.Parameter(weight.to("meta"), requires_grad=False)
                setattr(module, name.rpartition(".")[2], given)
        for name, buffer in module.named_buffers(path, recurse=False):
            if name in offered:
                setattr(module, name.rpartition(".")[2], buffer.to("meta"))


@contextmanager
def plain_layers() -> Iterator[None]:
    """Under dynamic VRAM layers are made without weights; a model in a file needs them on meta."""
    try:
        memory: Any = importlib.import_module("comfy.memory_management")
    except ImportError:  # older cores
        yield
        return
    before, memory.aimdo_enabled = getattr(memory, "aimdo_enabled", False), False
    try:
        yield
    finally:
        memory.aimdo_enabled = before


def stored_names(label: str, tensor: torch.Tensor) -> dict[int, str]:
    """Under which name each part of a quantised weight is saved, by the identity of the part."""
    if hasattr(tensor, "state_dict"):
        return {id(part): name for name, part in tensor.state_dict(label).items()}
    quantised: Any = tensor  # of older cores, which know one number beside the weight
    names = {id(quantised._qdata): label}
    names[id(quantised._layout_params.get("scale"))] = f"{label}_scale"
    return names


def new_patcher(model: Any, *, dynamic: bool) -> Any:
    """A patcher for a model that the host has not loaded itself.

    `dynamic`: as the host makes them where it has dynamic VRAM.
    """
    import comfy.model_management as management
    import comfy.model_patcher

    plain = comfy.model_patcher.ModelPatcher
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", plain) if dynamic else plain
    patcher = kind(
        model,
        load_device=management.get_torch_device(),
        offload_device=management.unet_offload_device(),
    )
    patcher.cached_patcher_init = (_refuse_to_read, ())
    return patcher


def _refuse_to_read(**_: Any) -> Any:
    """Newer cores read a model's file anew where they need another one, with all of its weights."""
    raise ModelError(
        "this model is streamed from its file, and a file is never written nor loaded as a whole: "
        "for scheduled hooks and for several devices load the model with ComfyUI's own loader and "
        "put WanVideo Block Swap behind it"
    )
