"""Every internal of ComfyUI that the nodes work through, by name, and the refusal without one.

A core that lacks a name is newer or older than those that were tried: it is told so, before any
block is taken, instead of being guessed at.
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import HostError
from ..host_code.wan_forwards import why_unread
from ..host_code.words import words_of, works_with
from .host import OVERRIDDEN, asks_the_device, is_dynamic

_MISSING: Any = object()
OLDEST, NEWEST = "0.3.75", "0.33.0"

# Module and name. `A|B`: one of them must be there, as generations of cores differ.
NAMES = (
    "comfy.float.stochastic_rounding",
    "comfy.lora.calculate_weight",
    "comfy.model_base.BaseModel.state_dict_for_saving",
    "comfy.model_detection.model_config_from_unet",
    "comfy.model_management.LoadedModel.model_unload",
    "comfy.model_management.cast_to_device",
    "comfy.model_management.current_loaded_models",
    "comfy.model_management.free_memory",
    "comfy.model_management.get_free_memory",
    "comfy.model_management.get_torch_device",
    "comfy.model_management.minimum_inference_memory",
    "comfy.model_management.module_size",
    "comfy.model_management.soft_empty_cache",
    "comfy.model_management.unet_dtype",
    "comfy.model_management.unet_manual_cast",
    "comfy.model_management.unet_offload_device",
    "comfy.model_patcher.LowVramPatch",
    "comfy.model_patcher.ModelPatcher",
    "comfy.model_patcher.wipe_lowvram_weight",
    "comfy.ops.CastWeightBiasOp.bias_function",
    "comfy.ops.CastWeightBiasOp.comfy_cast_weights",
    "comfy.ops.CastWeightBiasOp.weight_function",
    "comfy.patcher_extension.CallbacksMP",
    "comfy.patcher_extension.CallbacksMP.ON_CLONE",
    "comfy.patcher_extension.CallbacksMP.ON_DETACH",
    "comfy.patcher_extension.WrappersMP",
    "comfy.patcher_extension.WrappersMP.APPLY_MODEL",
    "comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL",
    "comfy.supported_models_base.BASE.custom_operations",
    "comfy.supported_models_base.BASE.get_model",
    "comfy.supported_models_base.BASE.optimizations",
    "comfy.supported_models_base.BASE.process_unet_state_dict",
    "comfy.supported_models_base.BASE.set_inference_dtype",
    "comfy.supported_models_base.BASE.supported_inference_dtypes",
    "comfy.supported_models_base.BASE.unet_config",
    "comfy.utils.calculate_parameters",
    "comfy.utils.get_attr",
    "comfy.utils.set_attr_param",
    "comfy.utils.weight_dtype",
    # Quantised files: rewritten for per-layer formats, or marked as a whole.
    "comfy.utils.convert_old_quants|comfy.supported_models_base.BASE.scaled_fp8",
    "comfy.supported_models_base.BASE.quant_config|comfy.supported_models_base.BASE.scaled_fp8",
    "comfy.utils.string_to_seed|comfy.model_patcher.string_to_seed",
)
# What code of the host hangs on its objects, or calls there by a name that it puts together.
WORDS = {
    "comfy.model_patcher.LowVramPatch": ("key", "patches", "convert_func", "set_func"),
    "comfy.model_patcher.get_key_weight": ("set_{}", "convert_{}"),
    "comfy.ops.mixed_precision_ops": ("set_weight", "convert_weight"),
    "comfy.patcher_extension.WrapperExecutor": ("class_obj",),
}
# What some cores have and others do without.
OPTIONAL = (
    "comfy.memory_management.aimdo_enabled",
    "comfy.model_management.is_oom",
    "comfy.model_management.lora_compute_dtype",
)
# What newer cores have beside these, where they have the first.
TOGETHER = {
    "comfy.utils.convert_old_quants": (
        "comfy.supported_models_base.BASE.quant_config",
        "comfy.utils.string_to_seed",
    ),
}
# Methods and attributes of a model patcher, and attributes of the model that its clones share.
METHODS = (
    *(name for name in OVERRIDDEN if name != "get_ram_usage"),  # of older cores alone
    "add_callback_with_key",
    "add_wrapper_with_key",
    "clone",
    "get_attachment",
    "get_combined_hook_patches",
    "is_clone",
    "partially_unload",
    "remove_callbacks_with_key",
    "remove_wrappers_with_key",
    "set_attachments",
)
ATTRIBUTES = (
    "callbacks",
    "force_cast_weights",
    "hook_backup",
    "load_device",
    "object_patches",
    "offload_device",
    "patches",
    "patches_uuid",
)
SHARED = (
    "current_patcher",
    "current_weight_patches_uuid",
    "model_loaded_weight_memory",
)
# What blocks are taken out of newer cores' dynamic VRAM through; without one of these a model gets
# block swap without dynamic VRAM.
SHARING = (
    "comfy.lora.calculate_shape",
    "comfy.model_management.MAX_PINNED_MEMORY",
    "comfy.model_management.TOTAL_PINNED_MEMORY",
    "comfy.model_management.ensure_pin_budget",
    "comfy.model_management.ensure_pin_registerable",
    "comfy.model_management.lora_compute_dtype",
    "comfy.model_patcher.CoreModelPatcher",
    "comfy.model_patcher.ModelPatcherDynamic",
    "comfy.ops.fp8_ops",
    "comfy.utils.string_to_seed",
)
# What blocks of the host's Wan models run in pieces through; without one of these they run whole.
# What their forwards work with is in `host_code.wan_forwards`.
CUTTING = (
    "comfy.ldm.wan.model.EmbedND",
    "comfy.ldm.wan.model.VaceWanAttentionBlock",
    "comfy.ldm.wan.model.WAN_CROSSATTENTION_CLASSES",
    "comfy.ldm.wan.model.WanAttentionBlock",
    "comfy.ldm.wan.model.WanI2VCrossAttention",
    "comfy.ldm.wan.model.WanSelfAttention",
    "comfy.ldm.wan.model.WanT2VCrossAttention",
    "comfy.ldm.wan.model.apply_rope1",
    "comfy.ldm.wan.model.optimized_attention",
    "comfy.model_management.cast_to",
    "comfy.ops.disable_weight_init",
)
CUTTING_WORDS = {
    "comfy.ops": ("_full_precision_mm", "input_scale", "layout_type"),
    "comfy.ldm.wan.model.WanAttentionBlock": ("qk_norm", "cross_attn_norm", "operation_settings"),
    "comfy.ldm.wan.model.WanModel": ("patch_size", "transformer_options"),
}
SHARING_WORDS = {
    "comfy.model_patcher.ModelPatcher._load_list": ("for_dynamic",),
    "comfy.model_patcher.ModelPatcherDynamic": ("seed_key", "_v", "_v_signature", "_pins"),
    "comfy.ops": (
        *("_full_precision_mm", "comfy_force_cast_weights", "layout_type", "seed_key"),
        *("weight_comfy_model_dtype", "bias_comfy_model_dtype"),
        *("_v", "_v_signature", "_v_weight", "_v_bias", "_prefetch"),
    ),
    "comfy.pinned_memory": ("_pins", "_pin_state"),
}
# Methods of a patcher under dynamic VRAM.
DYNAMIC = ("cached_patcher_init", "get_clone_model_override")


def require() -> None:
    """Raises HostError unless this ComfyUI has every internal that the nodes work through."""
    for alternatives in NAMES:
        if not any(map(_is_there, alternatives.split("|"))):
            _refuse(alternatives.replace("|", " (nor "), ")" * alternatives.count("|"))
    for sign, names in TOGETHER.items():
        for name in names if _is_there(sign) else ():
            if not _is_there(name):
                _refuse(name)
    for name in METHODS:
        if not _is_there(f"comfy.model_patcher.ModelPatcher.{name}"):
            _refuse(f"ModelPatcher.{name}")
    lost = _lost_word(WORDS)
    if lost is not None:
        _refuse(lost)
    if asks_the_device() and not _is_there("comfy.model_management.lora_compute_dtype"):
        _refuse("comfy.model_management.lora_compute_dtype")


def can_share() -> bool:
    """Whether this core's dynamic VRAM has every name that blocks are taken out of it through."""
    return all(map(_is_there, SHARING)) and _lost_word(SHARING_WORDS) is None


def why_not_cut() -> str | None:
    """Why no blocks of this core run in pieces: what it lacks, or does that was never read."""
    lost = next((name for name in CUTTING if not _is_there(name)), None)
    lost = lost or _lost_word(CUTTING_WORDS)
    if lost is not None:
        return f"this ComfyUI has no {lost}, which pieces work through"
    return why_unread(works_with)


def require_of(patcher: Any) -> None:
    """Raises HostError unless a patcher and its model have what block swap asks of them."""
    for name in _missing(patcher):
        _refuse(name)


def _missing(patcher: Any) -> Iterator[str]:
    for name in (*METHODS, *ATTRIBUTES, *(DYNAMIC if is_dynamic(patcher) else ())):
        if not hasattr(patcher, name):
            yield f"{type(patcher).__name__}.{name}"
    for name in SHARED:
        if not hasattr(patcher.model, name):
            yield f"{type(patcher.model).__name__}.{name}"


def _lost_word(words: Mapping[str, tuple[str, ...]]) -> str | None:
    """The first of the words that the code under its dotted name does not have."""
    for place, wanted in words.items():
        have = words_of(_found(place))
        for word in wanted:
            if word not in have:
                return f"{word} in {place}"
    return None


def _is_there(name: str) -> bool:
    """Whether a dotted name can be found, its module imported if need be."""
    return _found(name) is not _MISSING


def _found(name: str) -> Any:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            # Not hasattr: a configuration of newer cores has an answer for every name.
            if part not in dir(found):
                return _MISSING
            found = getattr(found, part)
        return found
    return _MISSING


def _refuse(name: str, closing: str = "") -> None:
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        version = "(of an unknown version)"
    raise HostError(
        f"ComfyUI {version} has no {name}{closing}, which block swap works through (tried with "
        f"{OLDEST} to {NEWEST}): update this pack, or take its nodes out of the workflow"
    )
