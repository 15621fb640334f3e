"""The seam to diffusers and PEFT: every class, method and attribute of theirs that we rely on.

Everything is imported when it is asked for: the package works without either.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import ModelError

# The methods of a model that write its weights: what each would do, and what to do instead.
_WRITE = "close the swap, do it, then swap again"
LORA_INSTEAD = "load it before swap_blocks, or merge it into the checkpoint"
WRITING_CALLS = (
    ("fuse_lora", "a LoRA was to be fused into", _WRITE),
    ("unfuse_lora", "a LoRA was to be taken out of", _WRITE),
    ("merge_adapter", "an adapter was to be merged into", _WRITE),
    ("unmerge_adapter", "an adapter was to be taken out of", _WRITE),
    ("merge_and_unload", "an adapter was to be merged into", _WRITE),
    ("load_adapter", "an adapter was to be loaded into", LORA_INSTEAD),
    ("fuse_qkv_projections", "projections were to be fused in", _WRITE),
    ("unfuse_qkv_projections", "projections were to be parted in", _WRITE),
    ("enable_layerwise_casting", "layerwise casting was to be switched on for", "swap a model of "
     "the dtype that it computes in, or give open_transformer a dtype"),
    ("enable_group_offload", "group offload was to be switched on for", "exclude the transformer "
     '(exclude_modules=["transformer"]), its blocks are offloaded already'),
)  # fmt: skip
# The method that loads a LoRA beside the weights.
LOADING_CALL = "load_lora_adapter"
# The method that makes a pipeline of another one's parts, and casts them (to fp32, unless told).
TAKING_CALL = "from_pipe"
# PEFT begins the second factor at zero, bias and all, and the first one at random.
FIRST_FACTOR, SECOND_FACTOR = ".lora_A.", ".lora_B."
# Hooks of diffusers that keep, cast or move weights; caches and layer skips are not among them.
MOVING_HOOKS = {
    "layerwise_casting": "casts its weights in every forward (layerwise casting)",
    "group_offloading": "moves its weights in every forward (group offload)",
    "lazy_prefetch_group_offloading": "moves its weights in every forward (group offload)",
}
_HOOK_REGISTRY = "_diffusers_hook"


def transformer_classes() -> tuple[Any, Any]:
    """Wan's transformer and the one with VACE blocks. Raises ModelError without diffusers."""
    try:
        from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
    except ImportError as error:
        raise _absent("opening a transformer", error, ", or give a skeleton of your own") from error
    return WanTransformer3DModel, WanVACETransformer3DModel


def vae_class() -> Any:
    """Wan's autoencoder. Raises ModelError without diffusers."""
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise _absent("predicting the VAE", error) from error
    return AutoencoderKLWan


def kept_in_fp32(model: torch.nn.Module) -> tuple[str, ...]:
    """Names of parts that the model's class wants in fp32 whatever the compute dtype is."""
    return tuple(getattr(type(model), "_keep_in_fp32_modules", None) or ())


def hook_registry(attributes: Mapping[str, Any]) -> Any | None:
    """Where diffusers keeps its hooks on a module, given that module's attributes."""
    return attributes.get(_HOOK_REGISTRY)


def mapped_places(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Where a `device_map` put the parts of a model, each once; () where none was given."""
    placed = attributes.get("hf_device_map") or {}
    return tuple(dict.fromkeys(map(str, placed.values())))


def merged_adapters(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """The adapters that PEFT has merged into a layer, given its attributes."""
    return tuple(attributes.get("merged_adapters") or ())


def adapted_layer(module: torch.nn.Module) -> torch.nn.Module | None:
    """The layer inside one of PEFT's that can merge adapters into it; None for other modules."""
    return getattr(module, "base_layer", None) if hasattr(module, "merged_adapters") else None


def _absent(what: str, error: ImportError, instead: str = "") -> ModelError:
    return ModelError(
        f"{what} needs diffusers, which could not be imported ({error}): "
        f'pip install "wanvideo-blockswap[diffusers]"{instead}'
    )


def attention_backend(processor: Any) -> Any:
    """The attention kernel that a processor names; None for the one that is set for all."""
    return getattr(processor, "_attention_backend", None)


def is_parallel(processor: Any) -> bool:
    """Whether the processor shares its tokens out among devices (context parallel)."""
    return getattr(processor, "_parallel_config", None) is not None


def attend_with(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: Any
) -> torch.Tensor:
    """Attention as Wan's processors ask for it: `[batch, tokens, heads, head_dim]`, no mask."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    seen: torch.Tensor = dispatch_attention_fn(
        query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, backend=backend
    )
    return seen


def cut_classes() -> dict[str, tuple[type, ...]]:
    """The classes whose forwards are known well enough to run them in pieces of tokens.

    By role: "model", "vace_model", "animate_model", "block", "vace_block", "face_block",
    "processor". Empty while diffusers is not loaded: then no model is one of its classes.
    """
    if "diffusers" not in sys.modules:
        return {}
    try:
        from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
        from diffusers.models.transformers import transformer_wan, transformer_wan_vace
    except ImportError:
        return {}
    blocks: list[type] = [transformer_wan.WanTransformerBlock]
    processors: list[type] = [transformer_wan.WanAttnProcessor]
    animates: tuple[type, ...] = ()
    faces: tuple[type, ...] = ()
    try:
        from diffusers.models.transformers import transformer_wan_animate as animate
    except ImportError:
        pass  # older than Wan2.2 Animate
    else:
        blocks.append(animate.WanTransformerBlock)
        processors += [animate.WanAttnProcessor, animate.WanAnimateFaceBlockAttnProcessor]
        animates = (animate.WanAnimateTransformer3DModel,)
        faces = (animate.WanAnimateFaceBlockCrossAttention,)
    return {
        "model": (WanTransformer3DModel,),
        "vace_model": (WanVACETransformer3DModel,),
        "animate_model": animates,
        "block": tuple(blocks),
        "face_block": faces,
        "vace_block": (transformer_wan_vace.WanVACETransformerBlock,),
        "processor": tuple(processors),
    }


def model_output(sample: torch.Tensor) -> Any:
    """What the transformer returns with `return_dict`."""
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=sample)
