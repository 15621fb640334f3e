"""Predictions for classes of diffusers are what the simulated accelerator reports, to the byte.

Each family is built small and runs with the inputs that its record makes.
"""

from types import ModuleType
from typing import Any

import pytest
import torch
from peaks import expect, loaded, measured, on_device

from blockswap.adapters.hosts.empty_models import empty_model
from blockswap.pieces import Pieces
from blockswap.plan.inputs.workload import Workload
from blockswap.predict.published_forward import (
    follow_library_forward,
    follow_library_in_pieces,
    library_inputs,
)
from blockswap.published import FAMILIES

_FLUX = {
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "in_channels": 16,
}
SMALL: dict[str, dict[str, Any]] = {
    "QwenImageTransformer2DModel": {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "axes_dims_rope": (8, 4, 4),
    },
    "Flux2Transformer2DModel": {
        **_FLUX,
        "timestep_guidance_channels": 32,
        "axes_dims_rope": (4, 4, 4, 4),
    },
    "FluxTransformer2DModel": {
        **_FLUX,
        "pooled_projection_dim": 24,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 4, 8),
    },
    "ZImageTransformer2DModel": {
        "in_channels": 4,
        "dim": 48,
        "n_layers": 14,
        "n_heads": 3,
        "n_kv_heads": 3,
        "cap_feat_dim": 24,
        "axes_dims": [8, 4, 4],
    },
    "HunyuanVideo15Transformer3DModel": {
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": 8,
        "attention_head_dim": 32,
        "num_layers": 5,
        "mlp_ratio": 2.0,
        "text_embed_dim": 24,
        "text_embed_2_dim": 16,
        "image_embed_dim": 12,
        "rope_axes_dim": (8, 12, 12),
        "task_type": "t2v",
    },
    "HunyuanVideoTransformer3DModel": {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": 24,
        "pooled_projection_dim": 16,
        "rope_axes_dim": (4, 4, 8),
    },
    "LTX2VideoTransformer3DModel": {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "audio_in_channels": 8,
        "audio_out_channels": 8,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8,
        "num_layers": 12,
        "caption_channels": 24,
        "rope_type": "split",
    },
    "WanAnimateTransformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "in_channels": 12,
        "latent_channels": 4,
        "out_channels": 4,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 96,
        "num_layers": 4,
        "image_dim": 40,
        "added_kv_proj_dim": 48,
        "motion_encoder_channel_sizes": {"4": 6, "8": 6},
        "motion_encoder_size": 8,
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 8,
        "face_encoder_hidden_dim": 8,
        "inject_face_latents_blocks": 2,
    },
    "MiniMaxH3Transformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "hidden_size": 24,
        "num_layers": 3,
        "ffn_dim": 32,
        "in_channels": 4,
        "audio_in_channels": 6,
        "text_dim": 8,
        "freq_dim": 8,
        "time_embed_hidden_dim": 24,
        "time_embed_dim": 16,
        "rope_freq_dim": 2,
    },
}


def clip(family: str, dtype: Any, batch: int) -> Workload:
    known = FAMILIES[family]
    grid = known.grid
    return Workload(
        4 * grid.pixels, 3 * grid.pixels, grid.first + grid.step, batch=batch, dtype=dtype,
        kernels="portable", text_tokens=70, grid=grid,
    )  # fmt: skip


@pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
@pytest.mark.parametrize(("dtype", "batch"), [("bfloat16", 1), ("float32", 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(
    sim: ModuleType, sim_device: torch.device, family: str, dtype: Any, batch: int
) -> None:
    known, config = FAMILIES[family], SMALL[family]
    if known.class_name == "MiniMaxH3Transformer3DModel":
        batch = 1  # one sequence is all that it takes
    wanted = clip(family, dtype, batch)
    cost = follow_library_forward(known, config, wanted)
    model = loaded(empty_model(family, config, getattr(torch, dtype)))
    given = library_inputs(known, model.config, wanted)
    model = model.to(sim_device)
    expect(cost, *measured(sim, model, lambda: on_device(given, sim_device)))


@pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
@pytest.mark.parametrize("family", [name for name, one in FAMILIES.items() if one.in_pieces])
def test_families_in_pieces(sim: ModuleType, sim_device: torch.device, family: str) -> None:
    known, config = FAMILIES[family], SMALL[family]
    grid = known.grid
    wanted = Workload(
        12 * grid.pixels, 8 * grid.pixels, 5 * grid.step + grid.first, dtype="bfloat16",
        kernels="portable", text_tokens=512, grid=grid,
    )  # fmt: skip
    whole = follow_library_forward(known, config, wanted)
    model = loaded(empty_model(family, config, torch.bfloat16))
    given = library_inputs(known, model.config, wanted)
    model = model.to(sim_device)
    for tokens in (192, 64):
        pieces = Pieces(model, tokens, pytest.fail)
        peak, *_ = measured(sim, model, lambda: on_device(given, sim_device))
        pieces.remove()
        predicted = follow_library_in_pieces(known, config, wanted, tokens)
        assert peak == pytest.approx(predicted, rel=0.01)
        assert predicted < whole.activation_bytes
