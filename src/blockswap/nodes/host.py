"""The seam to ComfyUI: every internal of the host that the nodes use, by name, in one page.

Its public interface (`comfy_api`, `folder_paths`) is imported where it is used. What stands here
has no promise behind it, and a new ComfyUI may rename it. Everything is imported when it is called:
the package has to be importable without a ComfyUI around it.
"""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch

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


def detect(weights: dict[str, torch.Tensor]) -> Any | None:
    """The host's configuration for a state dict (of meta tensors), its compute dtypes set."""
    import comfy.model_detection
    import comfy.model_management as management
    import comfy.utils

    config = comfy.model_detection.model_config_from_unet(weights, "")
    if config is None:
        return None
    device, kinds = management.get_torch_device(), list(config.supported_inference_dtypes)
    stored = None if config.scaled_fp8 is not None else comfy.utils.weight_dtype(weights)
    wanted = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=kinds,
        weight_dtype=stored,
    )
    config.set_inference_dtype(wanted, management.unet_manual_cast(wanted, device, kinds))
    return config


def new_patcher(model: Any) -> Any:
    """A patcher for a model that the host has not loaded itself."""
    import comfy.model_management as management
    import comfy.model_patcher

    return comfy.model_patcher.ModelPatcher(
        model,
        load_device=management.get_torch_device(),
        offload_device=management.unet_offload_device(),
    )


def is_dynamic(patcher: Any) -> bool:
    """Whether newer cores' dynamic VRAM moves the model's weights, one by one."""
    asked = getattr(patcher, "is_dynamic", None)
    return asked is not None and bool(asked())


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


def patched(patch: Any, weight: torch.Tensor, stored_dtype: torch.dtype) -> torch.Tensor:
    """A weight with the patch that was noted for it, as the host's own loading would make it.

    In fp32, with the host's rounding and seeds; from a stored fp8 or half precision number to fp32
    nothing is lost on either way.
    """
    import comfy.float
    import comfy.lora
    from comfy.model_patcher import string_to_seed

    seed = string_to_seed(patch.key)
    full = weight.to(torch.float32, copy=True)
    if patch.convert_func is not None:
        full = patch.convert_func(full, inplace=True)
    full = comfy.lora.calculate_weight(patch.patches[patch.key], full, patch.key)
    if patch.set_func is not None:
        made: torch.Tensor = patch.set_func(full, seed=seed, return_weight=True)
        return made
    rounded: torch.Tensor = comfy.float.stochastic_rounding(full, stored_dtype, seed=seed)
    return rounded


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

    return node_id in nodes.NODE_CLASS_MAPPINGS
