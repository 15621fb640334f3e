"""Owns what a Wan transformer's forward is given here, and what of it is timed."""

import time
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


def timed(forward: Any, inputs: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """Seconds of one forward, and what came out."""
    began = time.perf_counter()
    with torch.inference_mode():
        (output,) = forward(**inputs)
    return time.perf_counter() - began, output
