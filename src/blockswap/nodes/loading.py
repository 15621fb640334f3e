"""Building a ComfyUI model in front of its checkpoint file, without reading its blocks.

What ComfyUI decides from a checkpoint (which model it is, in which dtypes it computes) it decides
here from a state dict of meta tensors with the file's shapes. The model's blocks and embedders stay
meta tensors for good: they are read from the file when they run. The little that lies outside them
is loaded as ever and is ComfyUI's.
"""

from typing import Any

import torch

from ..adapters.live import places_of
from ..errors import ModelError
from ..layout.checkpoint import Checkpoint, open_checkpoint
from ..store.leaves import torch_dtype
from ..swap import FileUnits, find_file_units
from . import host
from .patcher import Wish, keep_file_units, swap_on_clone


def load_streamed(path: str, wish: Wish) -> Any:
    """A patcher for the checkpoint at `path`, with block swap on it.

    Raises CheckpointError for what is no usable safetensors file, ModelError for a model that
    ComfyUI does not know or that cannot be streamed from its file.
    """
    checkpoint = open_checkpoint(path)
    model = _build(checkpoint)
    _fill_in_scales(model.diffusion_model, checkpoint)
    files = find_file_units(model.diffusion_model, path)
    _load_rest(model.diffusion_model, checkpoint, files)
    patcher = host.new_patcher(model)
    keep_file_units(model, files)
    return swap_on_clone(patcher, wish)


def _build(checkpoint: Checkpoint) -> Any:
    """ComfyUI's model for the checkpoint, its transformer on the meta device."""
    if "_quantization_metadata" in checkpoint.metadata:
        raise ModelError(
            f"{checkpoint.label} holds quantised tensors of several formats, which cannot be "
            "streamed from the file yet: use ComfyUI's own loader with WanVideo Block Swap behind "
            "it, or a bf16, fp16 or fp8_scaled checkpoint"
        )
    weights = {
        key: torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype), device="meta")
        for key, tensor in _all_tensors(checkpoint).items()
    }
    config = host.detect(weights)
    if config is None or config.unet_config.get("image_model") != "wan2.1":
        raise ModelError(
            f"{checkpoint.label} is no Wan model that this ComfyUI knows: use a checkpoint in "
            "original names, as ComfyUI's own loader takes them"
        )
    return config.get_model(weights, "", device=torch.device("meta"))


def _fill_in_scales(root: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Scales that an fp8 file leaves out are 1, as in ComfyUI; as buffers they are not streamed."""
    stored = _all_tensors(checkpoint)
    for place in list(places_of(root)):
        if place.name in ("scale_weight", "scale_input") and place.label not in stored:
            del place.module._parameters[place.name]
            place.module.register_buffer(
                place.name, torch.ones((), dtype=torch.float32, device="cpu")
            )


def _all_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """Every tensor of the transformer by its bare name, also those that only some variants have."""
    found = {}
    for header in checkpoint.headers:
        for tensor in header.tensors:
            if tensor.name.startswith(checkpoint.prefix):
                found[tensor.name.removeprefix(checkpoint.prefix)] = tensor
    return found


def _load_rest(root: torch.nn.Module, checkpoint: Checkpoint, files: FileUnits) -> None:
    """Loads what lies outside the units, cast to the model's dtypes, as ComfyUI's loader would."""
    from safetensors import safe_open

    units = tuple(f"{name}." for name in files.names)
    for place in places_of(root):
        tensor = place.table[place.name]
        if tensor.device.type == "meta" and not place.label.startswith(units):
            real = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            place.table[place.name] = (
                torch.nn.Parameter(real, requires_grad=False) if place.is_parameter else real
            )
    rest = {}
    with safe_open(checkpoint.paths[0], framework="pt") as file:
        for key, tensor in _all_tensors(checkpoint).items():
            if not key.startswith(units):
                rest[key] = file.get_tensor(tensor.name)
    missing = root.load_state_dict(rest, strict=False).missing_keys
    scales = (".scale_weight", ".scale_input")
    lost = [key for key in missing if not key.startswith(units) and not key.endswith(scales)]
    if lost:
        raise ModelError(
            f"{checkpoint.label} lacks {len(lost)} tensors of the model, such as {lost[0]}: "
            "download it again"
        )
