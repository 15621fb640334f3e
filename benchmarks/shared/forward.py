"""Owns what a Wan transformer's forward is given here, and what of it is timed."""

import time
from collections.abc import Callable
from typing import Any

import torch


def inputs_of(
    latent: tuple[int, int, int], text_tokens: int, dtype: torch.dtype, seed: int
) -> dict[str, Any]:
    """Random inputs for latents of (frames, height, width), the same for the same seed."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(1, 16, *latent, generator=draw).to(dtype),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, text_tokens, 4096, generator=draw).to(dtype),
        "return_dict": False,
    }


def blocks_of_1_3b(blocks: int) -> Any:
    """Wan2.1 T2V 1.3B with so many of its 30 blocks; random weights in fp32."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=blocks
    )
    return model.eval().requires_grad_(False)


def timed(
    forward: Any, inputs: dict[str, Any], clock: Callable[[], float] = time.perf_counter
) -> tuple[float, torch.Tensor]:
    """Seconds of one forward, and what came out."""
    began = clock()
    with torch.inference_mode():
        (output,) = forward(**inputs)
    return clock() - began, output
