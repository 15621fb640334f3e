"""What the forwards of the host's Wan blocks work with, word by word, in each core that was read.

Blocks in pieces do what these forwards do. One that works with anything else, such as a layer, an
option or a patch of a newer core or another pack, may do more than a trial on a small model can
show, so then blocks run whole.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from .words import works_with

WAN, ATTENTION = "comfy.ldm.wan.model", "comfy.ldm.modules.attention"
_SELF = (
    "apply_rope1 head_dim heads k norm_k norm_q num_heads o optimized_attention q shape "
    "transformer_options v view"
)
_CROSS = "heads k norm_k norm_q num_heads o optimized_attention q transformer_options v"
_BLOCK = (
    "addcmul cast_to chunk comfy context_img_len contiguous cross_attn device dim dtype ffn "
    "model_management modulation ndim norm1 norm2 norm3 repeat_e self_attn torch "
    "transformer_options unbind unsqueeze"
)
_OPTIONS = (
    "_inside_attn_wrapper functools get optimized_attention_override transformer_options wraps"
)
_CONTAINERS = (
    "AttentionTensorContainer TypeError container_function hasattr isinstance len take tuple"
)
# Module, function or class, and the words of each core, oldest first.
FORWARDS: dict[tuple[str, str], tuple[str, ...]] = {
    (WAN, "WanSelfAttention"): (_SELF, f"{_SELF} attn1_patch get patches x"),
    (WAN, "WanT2VCrossAttention"): (_CROSS,),
    (WAN, "WanI2VCrossAttention"): (
        f"{_CROSS} k_img norm_k_img v_img",
        f"{_CROSS} k_img norm_k_img v_img low_precision_attention",
    ),
    (WAN, "WanAttentionBlock"): (_BLOCK, f"{_BLOCK} attn2_patch get patches x"),
    (WAN, "VaceWanAttentionBlock"): ("after_proj before_proj block_id forward super",),
    (WAN, "repeat_e"): ("dim repeat_interleave size torch",),
    (ATTENTION, "wrap_attn"): (_OPTIONS, f"{_OPTIONS} {_CONTAINERS}"),
}


def functions_read() -> Iterator[tuple[tuple[str, str], Any]]:
    """What stands under each name now, classes by their forward; None where nothing does."""
    for module, name in FORWARDS:
        found = getattr(importlib.import_module(module), name, None)
        yield (module, name), vars(found).get("forward") if isinstance(found, type) else found


def why_unread(words_of: Callable[[Any], frozenset[str]] = works_with) -> str | None:
    """What of a forward is none that was read, by name; None where all were."""
    for (module, name), function in functions_read():
        words, known = words_of(function), [set(k.split()) for k in FORWARDS[module, name]]
        if words in known:
            continue
        nearest = min(known, key=lambda read: len(words ^ read))
        more, less = words - nearest, nearest - words
        how = f"works with {min(more)}" if more else f"does not work with {min(less)}"
        return f"{module}.{name} {how}, unlike those that pieces are known for"
    return None
