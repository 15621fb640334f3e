"""The seam to dynamic VRAM of newer cores: what the nodes do with its internals, and nowhere else.

There a model's weights are mapped from their file; before each use a layer's weight is faulted into
a buffer on the device (a *vbar*), or cast from host memory, which is pinned as it is used. Modules
that are held for block swap never get either: the host's loading does not see them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .host_names import can_share
from .lost_patches import none_lost

# Methods of a dynamic patcher that a clone with block swap stands in front of.
OVERRIDDEN = (
    "load",
    "partially_load",
    "partially_unload",
    "partially_unload_ram",
    "unpatch_model",
    "_load_list",
    "loaded_size",
    "loaded_ram_size",
    "pinned_memory_size",
    "model_size",
    "get_key_patches",
)
# What else is asked of such a patcher.
ATTRIBUTES = ("get_free_memory", "load_device", "patches", "weight_wrapper_patches")
# Modules whose weights take no more than this are loaded at once, not mapped; a literal there.
SMALL_BYTES = 16 * 1024
# What the host's loading leaves on a module, to be put aside while the module is held.
_TRACES = ("_v", "_v_signature", "_v_weight", "_v_bias", "_pins", "_pin_state", "_prefetch")
_ALL = 1e32


def shares(patcher: Any) -> bool:
    """Whether modules can be taken out of this core's dynamic VRAM: whether it is the known one."""
    return all(hasattr(*place) for place in _places(patcher)) and _is_known(type(patcher))


def _places(patcher: Any) -> list[tuple[Any, str]]:
    shared = [(patcher.model, name) for name in ("dynamic_pins", "dynamic_vbars")]
    return shared + [(patcher, name) for name in ATTRIBUTES]


def is_on() -> bool:
    """Whether the host gives new models dynamic VRAM, of the kind that is known."""
    import comfy.model_patcher

    kind: Any = getattr(comfy.model_patcher, "CoreModelPatcher", None)
    dynamic: Any = getattr(comfy.model_patcher, "ModelPatcherDynamic", None)
    return dynamic is not None and kind is dynamic and _is_known(dynamic)


def _is_known(kind: Any) -> bool:
    code = getattr(kind.load, "__code__", None)
    known = code is not None and SMALL_BYTES in code.co_consts
    return known and can_share() and all(hasattr(kind, name) for name in OVERRIDDEN)


@contextmanager
def hidden(patcher: Any, modules: frozenset[torch.nn.Module]) -> Iterator[None]:
    """While the host walks the model, it does not come by `modules`."""
    model = patcher.model
    walk = model.named_modules

    def named_modules(*args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Module]]:
        return ((name, module) for name, module in walk(*args, **kwargs) if module not in modules)

    vars(model)["named_modules"] = named_modules
    try:
        yield
    finally:
        del vars(model)["named_modules"]


def before_a_walk(model: Any, call: Callable[[], None]) -> Callable[[], None]:
    """Calls `call` before anybody walks the modules of a model; returns what ends that."""

    def named_modules(*args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Module]]:
        call()
        walked: Iterator[tuple[str, torch.nn.Module]]
        walked = type(model).named_modules(model, *args, **kwargs)
        return walked

    def end() -> None:
        if vars(model).get("named_modules") is named_modules:
            del vars(model)["named_modules"]

    vars(model)["named_modules"] = named_modules
    return end


def entries(
    patcher: Any, modules: frozenset[torch.nn.Module]
) -> list[tuple[str, torch.nn.Module, bool]]:
    """(path, module, is small) of each of `modules` that the host would load."""
    found = []
    for *_, nbytes, path, module, _ in type(patcher)._load_list(patcher, for_dynamic=True):
        if module in modules:
            found.append((path, module, nbytes <= SMALL_BYTES and _casts(module)))
    return found


def _casts(module: torch.nn.Module) -> bool:
    """Whether a layer is one of the host's, which casts its weight at each use."""
    return hasattr(module, "comfy_cast_weights")


def small_weights(module: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The weights of a layer that the host loads at once, by name; nothing for any other module."""
    import comfy.model_management as management

    if not _casts(module) or management.module_size(module) > SMALL_BYTES:
        return []
    return list(module.named_parameters(recurse=False))


def prepare(module: torch.nn.Module, path: str) -> bool:
    """Makes a layer of the host's cast at each use; False for any other, which it never patches."""
    if not _casts(module):
        return False
    layer: Any = module
    layer.comfy_cast_weights = True
    layer.seed_key = path
    return True


def give_up(patcher: Any) -> None:
    """Takes the whole model off the device and out of pinned memory, as the host itself does."""
    type(patcher).partially_unload_ram(patcher, _ALL)
    type(patcher).partially_unload(patcher, None, _ALL)


def free_places(patcher: Any) -> int:
    """Empties the places that the host's weights have on the device; bytes that went.

    They are brought anew when they are used. What was loaded at once, patched, stays.
    """
    vbar = patcher.model.dynamic_vbars.get(patcher.load_device)
    return 0 if vbar is None else int(vbar.free_memory(_ALL))


def put_aside(modules: Iterable[torch.nn.Module]) -> dict[torch.nn.Module, dict[str, Any]]:
    """Takes off what the host's loading left on modules, and brings their weights to the host.

    A vbar's place is kept for the module: it cannot be given back, only filled again.
    """
    aside = {}
    for module in modules:
        kept = {name: vars(module).pop(name) for name in _TRACES if name in vars(module)}
        if kept:
            aside[module] = kept
        for parameter in module.parameters(recurse=False):
            if parameter.device.type not in ("cpu", "meta"):
                parameter.data = parameter.data.to("cpu")
    return aside


def put_back(aside: dict[torch.nn.Module, dict[str, Any]]) -> None:
    """Gives modules back what was put aside."""
    for module, kept in aside.items():
        vars(module).update(kept)


def arriving_dtypes(patcher: Any, modules: frozenset[torch.nn.Module]) -> dict[str, torch.dtype]:
    """The dtype of each weight that is not to arrive in the one it is mapped in, by its name.

    As the host has it: small modules as the file has them, others as the model has them.
    """
    root = patcher.model.diffusion_model
    small = {module for _, module, is_small in entries(patcher, modules) if is_small}
    found = {}
    for path, module in root.named_modules():
        if module not in modules or module in small:
            continue
        for name, weight in module.named_parameters(recurse=False):
            dtype = getattr(module, f"{name}_comfy_model_dtype", None)
            plain = not is_traceable_wrapper_subclass(weight)
            if plain and dtype is not None and dtype != weight.dtype:
                found[f"{path}.{name}" if path else name] = dtype
    return found


def are_weights(subsets: Iterable[str]) -> bool:
    """Whether these kinds of pinned memory, by the host's names, include that of weights."""
    return "weights" in subsets


def is_active(patcher: Any) -> bool:
    """Whether the model is running, as far as the host knows."""
    return bool(patcher.model.dynamic_pins[patcher.load_device]["active"])


def free_bytes(patcher: Any, device: Any) -> int:
    """What the host would still put on `device`, what it would make room for included."""
    return int(patcher.get_free_memory(device))


# Pinned host memory, of which the host keeps one account.


def pinnable_bytes(wanted: int) -> int:
    """How much of `wanted` may be pinned, once the host has let go of what is not in use."""
    import comfy.model_management as management

    if management.MAX_PINNED_MEMORY <= 0:
        return wanted  # the host pins nothing here, and counts nothing
    if management.ensure_pin_budget(wanted) and management.ensure_pin_registerable(wanted):
        return wanted
    return max(0, int(management.MAX_PINNED_MEMORY - management.TOTAL_PINNED_MEMORY))


def count_pinned(nbytes: int) -> None:
    """Counts what was pinned, or (negative) is pinned no more, where the host counts its own."""
    import comfy.model_management as management

    management.TOTAL_PINNED_MEMORY = max(0, management.TOTAL_PINNED_MEMORY + nbytes)


# Patches (LoRA), which are computed at each use.


def patch_at_use(patcher: Any, key: str) -> Any:
    """What computes a weight's patches each time it is used; None without any."""
    from comfy.model_patcher import LowVramPatch

    if key not in patcher.patches:
        return None
    patch = LowVramPatch(key, patcher.patches)

    def patched(weight: torch.Tensor) -> torch.Tensor:
        with none_lost():
            made: torch.Tensor = patch(weight)
        return made

    return patched


def changes_shape(patcher: Any, key: str, weight: torch.Tensor) -> bool:
    """Whether patches make another shape of a weight."""
    import comfy.lora

    made = comfy.lora.calculate_shape(patcher.patches[key], weight, key)
    return tuple(made) != tuple(weight.shape)


def wrappers(patcher: Any, key: str) -> list[Any]:
    """Functions that other nodes have put on a weight."""
    return list(patcher.weight_wrapper_patches.get(key, ()))


def computes_quantised(module: torch.nn.Module) -> bool:
    """Whether a layer multiplies with its weight as it is quantised, and not with the full one."""
    if _is_fast_fp8(module):
        return True
    return (
        is_traceable_wrapper_subclass(module.weight)
        and getattr(module, "layout_type", None) is not None
        and not getattr(module, "_full_precision_mm", False)
        and not getattr(module, "comfy_force_cast_weights", False)
    )


def _is_fast_fp8(module: torch.nn.Module) -> bool:
    import comfy.ops

    fast = isinstance(module, comfy.ops.fp8_ops.Linear)
    return fast and getattr(module, "weight_comfy_model_dtype", None) == torch.float8_e4m3fn


def patching_dtype(module: torch.nn.Module, given: torch.Tensor) -> torch.dtype:
    """In which dtype the host patches a weight that it quantises again, for an input."""
    import comfy.model_management as management

    if _is_fast_fp8(module):
        dtype: torch.dtype = management.lora_compute_dtype(given.device)
        return dtype
    return given.dtype


def requantised(patch: Any, weight: torch.Tensor, dtype: torch.dtype, path: str) -> torch.Tensor:
    """A weight (or bias) with its patch, computed in `dtype` and quantised as it was.

    As the host does it for a layer that computes quantised, each time the weight is brought.
    """
    import comfy.float
    import comfy.utils

    seed = comfy.utils.string_to_seed(path)
    full = weight.to(dtype=dtype)
    if is_traceable_wrapper_subclass(full):
        full = full.dequantize()
    full = patch(full.clone())
    if is_traceable_wrapper_subclass(weight):
        made: torch.Tensor = weight.requantize_from_float(
            full, scale="recalculate", stochastic_rounding=seed
        )
        return made
    rounded: torch.Tensor = comfy.float.stochastic_rounding(full, weight.dtype, seed=seed)
    return rounded
