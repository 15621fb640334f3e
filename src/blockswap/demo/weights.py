"""Owns the shipped weights: where they lie, what they say of themselves, how to load them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

FILE_NAME = "moving_shapes.safetensors"

# Metadata keys of the file; safetensors knows text values only, so lists and tables are JSON.
CONFIG = "blockswap.demo.config"
VOCABULARY = "blockswap.demo.vocabulary"


def weights_path() -> Path:
    """The shipped safetensors file, under Wan's original tensor names."""
    return Path(__file__).parent / "weights" / FILE_NAME


def read_metadata(path: Path | None = None) -> dict[str, str]:
    """What the file says of itself: heads, configuration, vocabulary, licence, training."""
    from safetensors import safe_open

    with safe_open(path or weights_path(), framework="pt") as file:
        return dict(file.metadata() or {})


def load_resident(
    path: Path | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Any:
    """The demo model as a plain `WanTransformer3DModel` that lies on the device as a whole.

    Without a `dtype` every tensor keeps the type it is shipped in; with one, all are cast to it.
    """
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
    from safetensors.torch import load_file

    path = path or weights_path()
    config = json.loads(read_metadata(path)[CONFIG])
    state = convert_wan_transformer_to_diffusers(load_file(path))
    if dtype is not None:
        state = {name: value.to(dtype) for name, value in state.items()}
    model = WanTransformer3DModel(**config)
    # Assigned rather than copied, so that each tensor brings its own dtype along.
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False).to(device)
