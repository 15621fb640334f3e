"""Configs of Wan's 2.1 and 2.2 VAEs, built as diffusers' class on the meta device."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from ..ambient import as_at_start
from .diffusers_seam import vae_class

# What differs from the defaults of AutoencoderKLWan, which are those of Wan2.1. Source of 2.2: the
# vae/config.json of Wan-AI/Wan2.2-TI2V-5B-Diffusers.
_CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "wan2.1": {},
        "wan2.2": {
            "base_dim": 160,
            "decoder_base_dim": 256,
            "z_dim": 48,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
        },
    }
)


@as_at_start()
def build_vae(version: str, dtype: torch.dtype) -> torch.nn.Module:
    """`AutoencoderKLWan` of "wan2.1" or "wan2.2" (the 5B model's) with meta parameters.

    Raises ModelError where diffusers is not installed.
    """
    with torch.device("meta"):
        vae: torch.nn.Module = vae_class()(**_CONFIGS[version])
    for parameter in vae.parameters():
        parameter.data = parameter.data.to(dtype)
    return vae.eval()
