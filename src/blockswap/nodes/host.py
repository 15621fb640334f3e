"""The seam to ComfyUI: what the nodes do with the host's internals, and nowhere else.

Its public interface (`comfy_api`, `folder_paths`) is imported where it is used. What stands here
has no promise behind it, and a new ComfyUI may rename it: `host_names` lists each name, and
`require` refuses a host that lacks one. Everything is imported when it is called: the package has
to be importable without a ComfyUI around it.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import ModelError

# Methods of a model patcher that a clone with block swap stands in front of.
OVERRIDDEN = (
    "load",
    "partially_load",
    "unpatch_model",
    "patch_weight_to_device",
    "_load_list",
    "patch_hooks",
    "unpatch_hooks",
    "model_size",
    "get_ram_usage",
)


# Devices and their memory, in bytes.


def compute_device() -> torch.device:
    """Where models compute."""
    import comfy.model_management as management

    device: torch.device = management.get_torch_device()
    return device


def free_bytes(device: Any) -> int:
    """What the host would still put on `device`."""
    import comfy.model_management as management

    return int(management.get_free_memory(device))


def inference_bytes() -> int:
    """What the host keeps free of weights for computing."""
    import comfy.model_management as management

    return int(management.minimum_inference_memory())


def weight_bytes(model: Any) -> int:
    """All weights of a model, as the host counts them."""
    import comfy.model_management as management

    return int(management.module_size(model))


def unload(patcher: Any) -> None:
    """Takes every clone of the model off the device, as the host's own *free* does for all."""
    import comfy.model_management as management

    for loaded in [m for m in management.current_loaded_models if m.model is not None]:
        if loaded.model.is_clone(patcher):
            loaded.model_unload()
            management.current_loaded_models.remove(loaded)


def empty_cache() -> None:
    import comfy.model_management as management

    management.soft_empty_cache()


# Which model a checkpoint is, and the patcher around it.


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


def detect(weights: dict[str, torch.Tensor], metadata: Mapping[str, str]) -> Any | None:
    """The host's configuration for a state dict (of meta tensors), its compute dtypes set.

    What the host takes for a marker of the whole file it takes out of `weights`.
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
    wanted = management.unet_dtype(
        model_params=count, supported_dtypes=kinds, weight_dtype=None if lone else stored
    )
    cast = management.unet_manual_cast(None if mixed else wanted, device, kinds)
    config.set_inference_dtype(wanted, cast)
    return config


def _mark(config: Any, name: str) -> bool:
    """Whether a mark is set; newer cores answer for marks that they do not have with a warning."""
    return hasattr(type(config), name) and getattr(config, name) is not None


def build(config: Any, weights: dict[str, torch.Tensor]) -> tuple[Any, list[str], list[str]]:
    """The host's model on meta tensors, as its own loading of `weights` (on meta) would leave it.

    Returns it with the names that `weights` lack, and those that the model has no place for.
    """
    with _plain_layers():
        model = config.get_model(weights, "", device=torch.device("meta"))
        offered = config.process_unet_state_dict(dict(weights))
        missing, unexpected = model.diffusion_model.load_state_dict(offered, strict=False)
    for path, module in model.diffusion_model.named_modules():
        if vars(module).get("weight", module) is None:  # a quantised layer that found no weight
            missing.append(f"{path}.weight")
    return model, list(missing), list(unexpected)


@contextmanager
def _plain_layers() -> Iterator[None]:
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


def is_dynamic(patcher: Any) -> bool:
    """Whether newer cores' dynamic VRAM moves the model's weights, one by one."""
    asked = getattr(patcher, "is_dynamic", None)
    return asked is not None and bool(asked())


_PLAIN = "blockswap_without_dynamic"


def clone_without_dynamic(patcher: Any) -> Any:
    """A clone that is not under dynamic VRAM, of which all such clones share one model object.

    The host reads the whole file for the first one; it is kept for as long as the model is.
    Raises ModelError for a model that the host cannot read again.
    """
    kept = vars(patcher.model).get(_PLAIN)
    if kept is not None:
        return patcher.clone(disable_dynamic=True, model_override=kept)
    if patcher.cached_patcher_init is None:
        raise ModelError(
            "this model is under dynamic VRAM and was not loaded from a file that ComfyUI could "
            "read again without it: start ComfyUI with --disable-dynamic-vram, or put WanVideo "
            "Block Swap directly behind the loader"
        )
    clone = patcher.clone(disable_dynamic=True)
    setattr(patcher.model, _PLAIN, clone.get_clone_model_override())
    return clone


def follow(patcher: Any, key: str, on_clone: Callable[..., None], on_detach: Any) -> None:
    """Calls these whenever the patcher is cloned, and when it is taken off its model."""
    from comfy.patcher_extension import CallbacksMP

    for kind, call in ((CallbacksMP.ON_CLONE, on_clone), (CallbacksMP.ON_DETACH, on_detach)):
        patcher.remove_callbacks_with_key(kind, key)
        patcher.add_callback_with_key(kind, key, call)


@contextmanager
def without_callbacks(patcher: Any) -> Any:
    """The patcher without what other nodes hang on its loading."""
    callbacks, patcher.callbacks = patcher.callbacks, {}
    try:
        yield
    finally:
        patcher.callbacks = callbacks


def load_list(patcher: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """The modules that the host would load: tuples with a module somewhere in each."""
    entries: list[Any] = type(patcher)._load_list(patcher, *args, **kwargs)
    return entries


def modules_in(entry: Any) -> list[torch.nn.Module]:
    """The modules in one entry of the load list, whatever its shape is in this version."""
    return [part for part in entry if isinstance(part, torch.nn.Module)]


# What the host keeps on the model object that all clones share.


def loaded_patches(model: Any) -> Any:
    """The identity of the weight patches in the model; None where nothing is loaded."""
    return model.current_weight_patches_uuid


def set_loaded_patches(model: Any, identity: Any) -> None:
    model.current_weight_patches_uuid = identity


def loaded_bytes(model: Any) -> int:
    """Weights that the host counts as loaded."""
    return int(model.model_loaded_weight_memory)


def add_loaded_bytes(model: Any, nbytes: int) -> None:
    model.model_loaded_weight_memory += nbytes


# Weights, and patches (LoRA) on them.


def bring_to_host_memory(patcher: Any, key: str) -> None:
    """A weight that the host has patched on the compute device rests in RAM again."""
    import comfy.utils

    weight = comfy.utils.get_attr(patcher.model, key)
    if weight.device.type != "cpu":
        comfy.utils.set_attr_param(patcher.model, key, weight.to("cpu"))


def is_noted_patch(function: Any) -> bool:
    """Whether a module's weight function is one that the host noted, to patch at each use."""
    return type(function).__name__ == "LowVramPatch"


def noted_keys(module: torch.nn.Module) -> list[str]:
    """The weights of a module that the host has noted a patch for."""
    functions = [f for name in ("weight", "bias") for f in getattr(module, f"{name}_function", ())]
    return [function.key for function in functions if is_noted_patch(function)]


def patched(patch: Any, weight: torch.Tensor) -> torch.Tensor:
    """A weight with the patch that was noted for it, as the host's own loading would make it.

    With the host's dtype for the arithmetic, its rounding and its seeds.
    """
    import comfy.float
    import comfy.lora
    import comfy.model_management as management

    seed, patches = _seed(patch.key), patch.patches.get(patch.key)
    dtype = None if patches is None else _patching_dtype(weight.device)
    full = management.cast_to_device(weight, weight.device, dtype, copy=True)
    if patch.convert_func is not None:
        full = patch.convert_func(full, inplace=True)
    if patches is not None:
        full = comfy.lora.calculate_weight(patches, full, patch.key)
    if patch.set_func is not None:
        made: torch.Tensor = patch.set_func(full, seed=seed, return_weight=True)
        return made
    rounded: torch.Tensor = comfy.float.stochastic_rounding(full, weight.dtype, seed=seed)
    return rounded


def patch_of_loading(patcher: Any, key: str, module: torch.nn.Module, name: str) -> Any:
    """What the host would note to make a weight as its loading does; None where that is a copy.

    A quantised weight is quantised anew by it, even without patches.
    """
    from comfy.model_patcher import LowVramPatch

    convert, give = (getattr(module, f"{does}_{name}", None) for does in ("convert", "set"))
    if key not in patcher.patches and give is None:
        return None
    return LowVramPatch(key, patcher.patches, convert, give)


def _seed(key: str) -> int:
    """The seed of a weight's rounding; newer cores warn where older ones have the function."""
    import comfy.model_patcher
    import comfy.utils

    place = comfy.utils if hasattr(comfy.utils, "string_to_seed") else comfy.model_patcher
    return int(place.string_to_seed(key))


def _patching_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which the host's own loading computes patches: newer cores ask the device."""
    import comfy.model_management as management

    if asks_the_device():
        dtype: torch.dtype = management.lora_compute_dtype(device)
        return dtype
    return torch.float32


def asks_the_device() -> bool:
    """Whether the host's own loading asks the device in which dtype to patch, by its code.

    Where another pack has put itself around that method, whether the question is there decides.
    """
    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher

    method = inspect.unwrap(ModelPatcher.patch_weight_to_device)
    read = getattr(getattr(method, "__code__", None), "co_names", ())
    if "calculate_weight" in read:
        return "lora_compute_dtype" in read
    return hasattr(management, "lora_compute_dtype")


def forget_noted(module: torch.nn.Module) -> None:
    """Takes everything off that the host has noted on `module`."""
    from comfy.model_patcher import wipe_lowvram_weight

    wipe_lowvram_weight(module)


# The page.


def show_text(node_id: str, text: str) -> None:
    """Shows `text` on a node, where this ComfyUI has a page to show it and a way to do so."""
    try:
        from server import PromptServer
    except ImportError:
        return  # the package without its server
    server: Any = getattr(PromptServer, "instance", None)
    if server is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node_id)


def is_taken(node_id: str) -> bool:
    """Whether a pack loaded before this one has the id; one loaded later takes it by itself."""
    import nodes

    return node_id in getattr(nodes, "NODE_CLASS_MAPPINGS", (node_id,))
