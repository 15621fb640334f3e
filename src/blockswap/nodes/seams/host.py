"""The seam to ComfyUI: what the nodes do with the host's internals, and nowhere else.

Its public interface (`comfy_api`, `folder_paths`) is imported where it is used. What stands here
has no promise behind it, and a new ComfyUI may rename it: `host_names` lists each name, and
`require` refuses a host that lacks one. Everything is imported when it is called: the package has
to be importable without a ComfyUI around it.
"""

import importlib
import inspect
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch

from ...errors import HostError, ModelError
from .lost_patches import none_lost

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
    "get_key_patches",
)


# Devices and their memory, in bytes.


def free_bytes(device: Any) -> int:
    """What the host would still put on `device`."""
    import comfy.model_management as management

    return int(management.get_free_memory(device))


def compute_device() -> Any:
    """Where the host computes."""
    import comfy.model_management as management

    return management.get_torch_device()


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory ran out, in the words of torch or the host."""
    import comfy.model_management as management

    if isinstance(error, torch.OutOfMemoryError):
        return True
    asked = getattr(management, "is_oom", None)  # of newer cores
    return asked is not None and isinstance(error, RuntimeError) and bool(asked(error))


def free_others(patcher: Any, wanted_bytes: float) -> int:
    """Has the host unload other models until so much is free; the bytes that became free."""
    import comfy.model_management as management

    device, loaded = patcher.load_device, management.current_loaded_models
    own = [m for m in loaded if m.model is not None and m.model.is_clone(patcher)]
    before = free_bytes(device)
    management.free_memory(wanted_bytes, device, keep_loaded=own)
    empty_cache()
    return max(0, free_bytes(device) - before)


def reload(patcher: Any) -> None:
    """Unloads a model in the middle of its sampling and loads it again, with what is free then."""
    device = patcher.load_device
    patcher.unpatch_model(patcher.offload_device, unpatch_weights=True)
    empty_cache()
    patcher.partially_load(device, max(free_bytes(device) - inference_bytes(), 1))


def current_patcher(model: Any) -> Any:
    """The patcher that a model is sampled with."""
    return model.current_patcher


def has_hooks(patcher: Any) -> bool:
    """Whether patches that are scheduled by step are in the weights at this moment."""
    return bool(patcher.hook_backup)


def around_forward(
    patcher: Any, key: str, model: Callable[..., Any], transformer: Callable[..., Any]
) -> None:
    """Has calls (`call(executor, *args, **kwargs)`) run the forwards of the model and of the
    transformer in it, in place of earlier ones."""
    from comfy.patcher_extension import WrappersMP

    for kind, call in (
        (WrappersMP.APPLY_MODEL, model),
        (WrappersMP.DIFFUSION_MODEL, transformer),
    ):
        patcher.remove_wrappers_with_key(kind, key)
        patcher.add_wrapper_with_key(kind, key, call)


# Dynamic VRAM.


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


def patched(patch: Any, weight: torch.Tensor, patcher: type | None = None) -> torch.Tensor:
    """A weight with the patch that was noted for it, as the host's own loading would make it.

    With the dtype for the arithmetic of the `patcher` (the host's plain one), and the host's
    rounding and seeds.
    """
    import comfy.float
    import comfy.lora
    import comfy.model_management as management

    seed, patches = _seed(patch.key), patch.patches.get(patch.key)
    dtype = None if patches is None else _patching_dtype(weight.device, patcher)
    full = management.cast_to_device(weight, weight.device, dtype, copy=True)
    if patch.convert_func is not None:
        full = patch.convert_func(full, inplace=True)
    if patches is not None:
        with none_lost():
            full = comfy.lora.calculate_weight(patches, full, patch.key)
    if patch.set_func is not None:
        made: torch.Tensor = patch.set_func(full, seed=seed, return_weight=True)
        return made
    rounded: torch.Tensor = comfy.float.stochastic_rounding(full, weight.dtype, seed=seed)
    return rounded


def note_patch(patcher: Any, key: str) -> Any:
    """What the host would note to make a weight as its loading does."""
    from comfy.model_patcher import LowVramPatch

    return LowVramPatch(key, patcher.patches, None, None)


def weight_of(model: Any, key: str) -> Any:
    """A weight of a model by its name."""
    import comfy.utils

    return comfy.utils.get_attr(model, key)


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


def _patching_dtype(device: torch.device, patcher: type | None = None) -> torch.dtype:
    """The dtype in which the host's own loading computes patches: newer cores ask the device."""
    import comfy.model_management as management

    if asks_the_device(patcher):
        dtype: torch.dtype = management.lora_compute_dtype(device)
        return dtype
    return torch.float32


def asks_the_device(patcher: type | None = None) -> bool:
    """Whether the loading of a patcher (the host's own) asks the device in which dtype to patch.

    By its code. Where another pack has put itself around that method, whether the question is
    there decides.
    """
    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher

    kind: Any = patcher or ModelPatcher
    method = inspect.unwrap(kind.patch_weight_to_device)
    read = getattr(getattr(method, "__code__", None), "co_names", ())
    if "calculate_weight" in read:
        return "lora_compute_dtype" in read
    return hasattr(management, "lora_compute_dtype")


def forget_noted(module: torch.nn.Module) -> None:
    """Takes everything off that the host has noted on `module`."""
    from comfy.model_patcher import wipe_lowvram_weight

    wipe_lowvram_weight(module)


# The page.


def page_server() -> Any:
    """The server of the page; None for the package without it."""
    try:
        from server import PromptServer
    except ImportError:
        return None
    return getattr(PromptServer, "instance", None)


def show_text(node_id: str, text: str, page: str | None = None) -> None:
    """Shows `text` on a node, where this ComfyUI has a page to show it and a way to do so.

    `page`: the one that asked, where it is not the one whose prompt runs.
    """
    server = page_server()
    if server is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node_id, page)


@contextmanager
def between_prompts() -> Any:
    """While nothing runs, and nothing starts. Raises HostError while a prompt runs."""
    queue: Any = getattr(page_server(), "prompt_queue", None)
    if not hasattr(queue, "mutex") or not hasattr(queue, "currently_running"):
        raise HostError(
            "this ComfyUI does not say whether a prompt runs: the plan is told when the node runs"
        )
    with queue.mutex:
        if queue.currently_running:
            raise HostError("a prompt is running: ask again when it has ended")
        yield


def answer(path: str, call: Callable[[dict[str, Any]], Any]) -> None:
    """Has the page's server answer what is posted to `path`, JSON with JSON, where there is one."""
    server = page_server()
    if not hasattr(server, "routes"):
        return
    web: Any = importlib.import_module("aiohttp.web")

    async def reply(request: Any) -> Any:
        return web.json_response(await call(await request.json()))

    server.routes.post(path)(reply)


def registered(node_id: str) -> Any:
    """The class of a node that is installed; None without it."""
    import nodes

    return nodes.NODE_CLASS_MAPPINGS.get(node_id)


def is_taken(node_id: str) -> bool:
    """Whether a pack loaded before this one has the id; one loaded later takes it by itself."""
    import nodes

    return node_id in getattr(nodes, "NODE_CLASS_MAPPINGS", (node_id,))
