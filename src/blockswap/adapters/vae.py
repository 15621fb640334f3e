"""Configs of Wan's 2.1 and 2.2 VAEs, built as diffusers' class on the meta device."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from ..ambient import as_at_start
from .diffusers_seam import vae_class

# Means and deviations of the 48 latent channels. Source: Wan2.2's own wan/modules/vae2_2.py.
_MEAN_22 = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813,
    0.0891, 0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108,
    -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313,
    -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944,
    0.3573, -0.0548, -0.1681, -0.0667,
]  # fmt: skip
_STD_22 = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
]  # fmt: skip

# What differs from the defaults of AutoencoderKLWan, which are those of Wan2.1. Source of 2.2: the
# vae/config.json of Wan-AI/Wan2.2-TI2V-5B-Diffusers.
VAE_CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
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
            "latents_mean": _MEAN_22,
            "latents_std": _STD_22,
        },
    }
)


@as_at_start()
def build_vae(version: str, dtype: torch.dtype) -> torch.nn.Module:
    """`AutoencoderKLWan` of "wan2.1" or "wan2.2" (the 5B model's) with meta parameters.

    Raises ModelError where diffusers is not installed.
    """
    with torch.device("meta"):
        vae: torch.nn.Module = vae_class()(**VAE_CONFIGS[version])
    for parameter in vae.parameters():
        parameter.data = parameter.data.to(dtype)
    return vae.eval()
