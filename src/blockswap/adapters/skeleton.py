"""Diffusers' Wan class built for a geometry on the meta device; which tensors it keeps in fp32.

Parameters are meta tensors; buffers that are computed and not stored (rope tables) are real.
"""

from typing import Any

import torch

from ..ambient import as_at_start
from ..errors import ModelError
from ..layout.geometry import WanGeometry
from .diffusers_seam import kept_in_fp32, transformer_classes


@as_at_start()
def build_skeleton(geometry: WanGeometry) -> torch.nn.Module:
    """A `WanTransformer3DModel` or `WanVACETransformer3DModel` of this geometry, in eval mode.

    Raises ModelError where diffusers is not installed or too old for the model.
    """
    plain, vace = transformer_classes()
    config = wan_config(geometry)
    wanted = vace if geometry.vace_layers else plain
    # A mode of this thread alone: other threads may be building models of their own.
    with torch.device("meta"):
        model = wanted(**config)
    # The rope table is computed, not stored: it is made again for real.
    model.rope = type(model.rope)(
        geometry.head_dim, geometry.patch_size, model.config.rope_max_seq_len
    )
    left = [name for name, buffer in model.named_buffers() if buffer.device.type == "meta"]
    if left:
        raise ModelError(
            f"this diffusers has buffers in its Wan class that blockswap does not know ({left[0]}):"
            " use diffusers 0.36 to 0.42, or give a skeleton of your own"
        )
    skeleton: torch.nn.Module = model.eval()
    return skeleton


def keeps_fp32(model: torch.nn.Module, name: str) -> bool:
    """Whether the model's class wants tensor `name` in fp32 whatever the compute dtype is."""
    return any(part in name.split(".") for part in kept_in_fp32(model))


def wan_config(geometry: WanGeometry) -> dict[str, Any]:
    """The geometry in the words of diffusers' config."""
    config: dict[str, Any] = {
        "patch_size": geometry.patch_size,
        "num_attention_heads": geometry.num_heads,
        "attention_head_dim": geometry.head_dim,
        "in_channels": geometry.in_channels,
        "out_channels": geometry.out_channels,
        "text_dim": geometry.text_dim,
        "freq_dim": geometry.freq_dim,
        "ffn_dim": geometry.ffn_dim,
        "num_layers": geometry.num_layers,
        "cross_attn_norm": geometry.cross_attn_norm,
        "qk_norm": "rms_norm_across_heads" if geometry.qk_norm else None,
        "eps": geometry.eps,
        "image_dim": geometry.image_dim,
        "added_kv_proj_dim": geometry.dim if geometry.added_kv else None,
        "pos_embed_seq_len": geometry.pos_embed_seq_len,
        "rope_max_seq_len": geometry.rope_max_seq_len,
    }
    if geometry.vace_layers:
        config["vace_layers"] = list(geometry.vace_layers)
        config["vace_in_channels"] = geometry.vace_in_channels
    return config
