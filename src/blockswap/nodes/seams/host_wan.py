"""The seam to ComfyUI's Wan classes: which blocks are known in pieces, and what they compute with.

Functions are looked up where the host's own block finds them, at each call: other packs put theirs
in that place.
"""

import hashlib
import inspect
import sys
from typing import Any

import torch

from .host_checkpoints import plain_layers

_MODULE = "comfy.ldm.wan.model"
# Layouts of quantised tensors that round each token of their input by itself.
BY_TOKEN = frozenset(
    {
        *("TensorCoreFP8Layout", "TensorCoreFP8E4M3Layout", "TensorCoreFP8E5M2Layout"),
        *("TensorCoreMXFP8Layout", "TensorWiseINT8Layout"),
    }
)
# Weights that a layer of the host or of a GGUF pack makes plain each time it is called.
PACKED = frozenset({"QuantizedTensor", "GGMLTensor"})
# Patches of a block's insides that are called with the tokens that are at hand.
INSIDE = ("attn1_patch", "attn2_patch")
OVERRIDE = "optimized_attention_override"
# The VACE model's own forward as it is known: a digest of its text, and whether it tells blocks
# their number in the options.
_VACE_FORWARDS = {"d6963e29e0e048d1": False, "dcf20755d6bfaa0c": True}


def _wan() -> Any:
    """The module of Wan's classes; None where it is not loaded: then no model is one of them."""
    return sys.modules.get(_MODULE)


def is_block(block: torch.nn.Module) -> bool:
    """Whether a block is of the host's own class and its parts are, too."""
    wan = _wan()
    if wan is None or type(block) not in (wan.WanAttentionBlock, wan.VaceWanAttentionBlock):
        return False
    parts: Any = block
    crossing = (wan.WanT2VCrossAttention, wan.WanI2VCrossAttention)
    return type(parts.self_attn) is wan.WanSelfAttention and type(parts.cross_attn) in crossing


def is_vace(root: torch.nn.Module) -> bool:
    """Whether a model is of the host's VACE class."""
    wan = _wan()
    return wan is not None and type(root) is getattr(wan, "VaceWanModel", None)


def knows_vace(root: Any) -> bool:
    """Whether the forward of the host's VACE class is one that was read."""
    return _digest(root) in _VACE_FORWARDS


def tells_blocks(root: Any) -> bool:
    """Whether a known forward of the VACE class says in the options which block runs."""
    return _VACE_FORWARDS[_digest(root)]


def _digest(root: Any) -> str:
    """Of the text of a model class's forward, without its blanks."""
    try:
        text = inspect.getsource(type(root).forward_orig)
    except (OSError, TypeError):
        return ""
    return hashlib.sha256("".join(text.split()).encode()).hexdigest()[:16]


def between_blocks(options: Any) -> tuple[bool, list[Any]]:
    """Whether others are called between blocks, and the places of blocks that they replace."""
    patches = options.get("patches", {}).get("double_block")
    return bool(patches), list(options.get("patches_replace", {}).get("dit", {}))


def idle(options: Any) -> dict[str, Any]:
    """Options in which others stand where they do in these, and do nothing."""
    called, replaced = between_blocks(options)
    made: dict[str, Any] = {}
    if called:
        made["patches"] = {"double_block": [lambda given: given]}
    if replaced:
        own = dict.fromkeys(replaced, lambda given, more: more["original_block"](given))
        made["patches_replace"] = {"dit": own}
    return made


def sinusoids(dim: int, timestep: torch.Tensor) -> torch.Tensor:
    """The embedding of timesteps that a model's time embedding starts from."""
    made: torch.Tensor = _wan().sinusoidal_embedding_1d(dim, timestep)
    return made


def looks_at_image(attention: Any) -> bool:
    """Whether a cross attention has keys of an image beside those of the text."""
    return type(attention) is _wan().WanI2VCrossAttention


def attend(
    attention: Any, query: torch.Tensor, keys: tuple[torch.Tensor, torch.Tensor], options: Any,
    **more: Any,
) -> torch.Tensor:  # fmt: skip
    """The host's attention, `[batch, tokens, dim]`, with the options of the sampled model."""
    seen: torch.Tensor = _wan().optimized_attention(
        query, *keys, heads=attention.num_heads, transformer_options=options, **more
    )
    return seen


def rotated(tokens: torch.Tensor, freqs: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of `[batch, tokens, heads, head_dim]`."""
    turned: torch.Tensor = _wan().apply_rope1(tokens, freqs)
    return turned


def like(weight: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """A weight in the dtype of the tokens and where they are."""
    import comfy.model_management as management

    cast: torch.Tensor = management.cast_to(weight, dtype=tokens.dtype, device=tokens.device)
    return cast


def scales_all_tokens(layer: Any) -> bool:
    """Whether a quantised layer rounds its input by the largest value of all tokens together."""
    layout = getattr(layer, "layout_type", None)
    if layout is None or getattr(layer, "_full_precision_mm", True):
        return False
    return layout not in BY_TOKEN and getattr(layer, "input_scale", None) is None


def multiplies_packed(layer: Any) -> bool:
    """Whether a quantised layer rounds its input and multiplies in the stored form.

    Older cores do so only with the scale that the file gives for the input.
    """
    import comfy.utils

    if getattr(layer, "layout_type", None) is None or getattr(layer, "_full_precision_mm", True):
        return False
    scaled = getattr(layer, "input_scale", None) is not None
    forced = getattr(layer, "comfy_force_cast_weights", False)
    return not forced and (scaled or hasattr(comfy.utils, "convert_old_quants"))


def forwards_of(block: Any) -> tuple[Any, ...]:
    """What decides what a block computes: other packs replace it for all blocks of a class."""
    wan, parts = _wan(), (block, block.self_attn, block.cross_attn)
    return (*(type(part).forward for part in parts), wan.optimized_attention, wan.apply_rope1)


def small_block(block: Any, dim: int, heads: int) -> torch.nn.Module:
    """A block of the same classes with `dim` channels and weights without values."""
    import comfy.ops

    kinds = {kind: name for name, kind in _wan().WAN_CROSSATTENTION_CLASSES.items()}
    more = {"block_id": block.block_id} if hasattr(block, "after_proj") else {}
    settings = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32}
    with plain_layers():
        made: torch.nn.Module = type(block)(
            kinds[type(block.cross_attn)],
            dim,
            2 * dim,
            heads,
            qk_norm=block.qk_norm,
            cross_attn_norm=block.cross_attn_norm,
            operation_settings=settings,
            **more,
        )
    return made


def rotary_table(tokens: int, head_dim: int) -> torch.Tensor:
    """Rotary tables of so many tokens, as the host's model makes them for its blocks."""
    third = 2 * (head_dim // 6)
    rows = torch.arange(tokens, dtype=torch.float32, device="cpu")
    places = rows.reshape(1, tokens, 1).repeat(1, 1, 3)
    embed = _wan().EmbedND(
        dim=head_dim, theta=10000.0, axes_dim=[head_dim - 2 * third, third, third]
    )
    table: torch.Tensor = embed(places).movedim(1, 2)
    return table
