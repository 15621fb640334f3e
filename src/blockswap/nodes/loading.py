"""Building a ComfyUI model in front of its checkpoint file, without reading its blocks.

What ComfyUI decides from a checkpoint (which model it is, in which dtypes it computes) it decides
here from a state dict of meta tensors with the file's shapes. The model's blocks and embedders stay
meta tensors for good: they are read from the file when they run. The little that lies outside them
is loaded as ever and is ComfyUI's.
"""

from dataclasses import dataclass
from typing import Any

import torch

from ..adapters.live import places_of
from ..errors import ModelError
from ..layout.checkpoint import Checkpoint, open_checkpoint
from ..layout.geometry.infer import module_of
from ..store.leaves import spec_of
from ..stream.units.binding import as_value
from ..swap import FileUnits, find_file_units
from .clone.overrides import plan_text
from .clone.patcher import keep_file_units, swap_on_clone
from .from_file.contents import (
    FileContents,
    as_the_model_has_it,
    contents_of,
    file_keys,
    refuse_unused,
)
from .from_file.file_weights import keep_file_weights
from .runs.wish import Wish
from .seams import gguf_pack, host_checkpoints, host_dynamic
from .seams.host_names import require

_OTHERWISE = "use ComfyUI's own loader with WanVideo Block Swap behind it"


def load_streamed(path: str, wish: Wish, weight_dtype: str = "default") -> Any:
    """A patcher for the checkpoint at `path`, with block swap on it.

    `weight_dtype`: as the host's own loader has it, one of `host_checkpoints.WEIGHT_DTYPES`.
    Raises CheckpointError for what is no usable safetensors or GGUF file, ModelError for a model
    that ComfyUI does not know or that cannot be streamed from its file, HostError in a ComfyUI that
    is not as expected.
    """
    opened = _opened(path, weight_dtype)
    model, contents = opened.model, opened.contents
    files, keys = _in_file(opened)
    in_units = tuple(f"{name}." for name in files.names)
    inside = {label: k for label, k in keys.items() if label.startswith(in_units)}
    keep_file_weights(model, contents, inside)
    _load_rest(model.diffusion_model, contents, keys, in_units)
    return swap_on_clone(_patcher(opened), wish)


def plan_for_file(path: str, wish: Wish, weight_dtype: str, *, streamed: bool) -> str:
    """The plan of `load_streamed`, or of the swap node behind the host's own loading of the file.

    From its header: nothing is loaded. Raises as `load_streamed`.
    """
    opened = _opened(path, weight_dtype, any_model=not streamed)
    if streamed:
        _in_file(opened)
    return plan_text(swap_on_clone(_patcher(opened), wish))


@dataclass(frozen=True, slots=True)
class _Opened:
    """The host's model on meta in front of a checkpoint."""

    checkpoint: Checkpoint
    contents: FileContents
    model: Any
    dynamic: bool


def _opened(path: str, weight_dtype: str, *, any_model: bool = False) -> _Opened:
    require()
    checkpoint = open_checkpoint(path)
    if checkpoint.in_gguf and weight_dtype != "default":
        raise ModelError(
            f"weight_dtype {weight_dtype} was asked of {checkpoint.label}, a GGUF file, whose "
            "weights stay packed as they are: set it to default"
        )
    contents = contents_of(checkpoint)
    model = _build(checkpoint, contents, weight_dtype, any_model=any_model)
    dynamic = host_dynamic.is_on() and not checkpoint.in_gguf
    if dynamic:
        _keep_stored_dtypes(model.diffusion_model, contents)
    return _Opened(checkpoint, contents, model, dynamic)


def _in_file(opened: _Opened) -> tuple[FileUnits, dict[str, tuple[str, ...]]]:
    """The units of the model, to be read from the file whenever they run, and the keys there."""
    root, contents = opened.model.diffusion_model, opened.contents
    _fill_in_scales(root, contents)
    keys = file_keys(root, contents)
    files = find_file_units(root, opened.checkpoint, keys)
    keep_file_units(opened.model, files)
    return files, keys


def _patcher(opened: _Opened) -> Any:
    patcher = host_checkpoints.new_patcher(opened.model, dynamic=opened.dynamic)
    if opened.checkpoint.in_gguf:
        return gguf_pack.patcher_of(opened.checkpoint.label, patcher)
    return patcher


def _build(
    checkpoint: Checkpoint, contents: FileContents, weight_dtype: str, *, any_model: bool
) -> Any:
    """ComfyUI's model for the checkpoint, its transformer on meta; one of Wan's, or any."""
    if module := module_of(checkpoint.tensors):
        raise ModelError(
            f"{checkpoint.label} is a module of {module} without the model that it goes onto, and "
            "this node reads whole models: give a file that holds both, or use a pack whose loader "
            "takes modules, with WanVideo Block Swap behind it"
        )
    packed = checkpoint.in_gguf
    metadata = {} if packed else checkpoint.metadata
    config = host_checkpoints.detect(contents.weights, metadata, weight_dtype)
    if config is None or not (any_model or config.unet_config.get("image_model") == "wan2.1"):
        raise ModelError(
            f"{checkpoint.label} is no Wan model that this ComfyUI knows: use a checkpoint in "
            "original names, as ComfyUI's own loader takes them"
        )
    try:
        layers = gguf_pack.layers(checkpoint.label) if packed else None
        model, missing, unexpected = host_checkpoints.build(config, contents.weights, layers)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{checkpoint.label} could not be laid out by this ComfyUI ({_first_line(error)}): "
            f"update ComfyUI, or {_OTHERWISE}"
        ) from error
    refuse_unused(checkpoint, contents, unexpected)
    scales = (".scale_weight", ".scale_input")
    lost = [key for key in missing if not key.endswith(scales)]
    lost += gguf_pack.lacking(model.diffusion_model) if packed else []
    if lost:
        raise ModelError(
            f"{checkpoint.label} lacks {len(lost)} tensors of the model, such as {lost[0]}: "
            "download it again"
        )
    return model


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    return next((line for line in reversed(lines) if line), type(error).__name__)


def _fill_in_scales(root: torch.nn.Module, contents: FileContents) -> None:
    """Scales that an fp8 file leaves out are 1, as in ComfyUI; as buffers they are not streamed."""
    for place in list(places_of(root)):
        left_out = place.label not in contents.weights
        if place.name in ("scale_weight", "scale_input") and left_out:
            del place.module._parameters[place.name]
            place.module.register_buffer(
                place.name, torch.ones((), dtype=torch.float32, device="cpu")
            )


def _keep_stored_dtypes(root: torch.nn.Module, contents: FileContents) -> None:
    """Under dynamic VRAM small layers keep the dtypes of the file, and cast at each use."""
    for path, module in root.named_modules():
        for name, weight in host_dynamic.small_weights(module):
            stored = contents.weights.get(f"{path}.{name}")
            if stored is not None and stored.dtype != weight.dtype:
                module._parameters[name] = torch.nn.Parameter(
                    torch.empty_like(weight, dtype=stored.dtype), requires_grad=False
                )


def _load_rest(
    root: torch.nn.Module,
    contents: FileContents,
    keys: dict[str, tuple[str, ...]],
    units: tuple[str, ...],
) -> None:
    """Loads what is never streamed: what lies outside the units, and buffers in them.

    Cast to the model's dtypes, as ComfyUI's loader would.
    """
    with contents.reading() as read:
        for place in list(places_of(root)):
            tensor = place.table[place.name]
            streamed = place.is_parameter and place.label.startswith(units)
            if tensor.device.type != "meta" or streamed:
                continue
            spec = spec_of(place.name, tensor, label=place.label)
            real = as_the_model_has_it(read, spec, keys[place.label])
            place.table[place.name] = as_value(real, is_parameter=place.is_parameter)
