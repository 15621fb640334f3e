"""Wan's VAEs in single files: the vendor's names or diffusers', and the config that shapes tell."""

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch

from ...errors import GeometryError, ModelError
from ..vae import VAE_CONFIGS

_WAYS_IN = ("encoder.conv1.weight", "encoder.conv_in.weight")  # vendor's, diffusers'
_DECODER = ("decoder.conv1.weight", "decoder.conv_in.weight")
_LATENT = ("conv2.weight", "post_quant_conv.weight")
_PREFIXES = ("first_stage_model.", "vae.", "")
# Of Wan 2.2, whose levels are lists of their own; the rest has the names of 2.1.
_LEVELS = re.compile(
    r"^(encoder\.down|decoder\.up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.*)$"
)
_RESIDUAL = {
    "residual.0.gamma": "norm1.gamma",
    "residual.2.weight": "conv1.weight",
    "residual.2.bias": "conv1.bias",
    "residual.3.gamma": "norm2.gamma",
    "residual.6.weight": "conv2.weight",
    "residual.6.bias": "conv2.bias",
    "shortcut.weight": "conv_shortcut.weight",
    "shortcut.bias": "conv_shortcut.bias",
}


def is_wan_vae(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether tensors of these names and shapes are of Wan's VAE: causal convolutions in 3-D."""
    bare = _bare(shapes)
    firsts = [bare[name] for name in (*_WAYS_IN, *_DECODER, *_LATENT) if name in bare]
    return len(firsts) == 3 and all(len(shape) == 5 for shape in firsts)


def vae_config(label: str | PathLike[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The config of the VAE with these tensors: Wan 2.1's or 2.2's, in the widths that they have.

    Raises GeometryError for a number of latent channels that neither has: what they are scaled by
    stands in no file.
    """
    bare = _bare(shapes)
    way_in, decoder, latent = (
        next(bare[name] for name in names if name in bare)
        for names in (_WAYS_IN, _DECODER, _LATENT)
    )
    version = {16: "wan2.1", 48: "wan2.2"}.get(latent[0])
    if version is None:
        raise GeometryError(
            f"{label} is a VAE of {latent[0]} latent channels, and Wan's have 16 or 48: give one "
            "of Wan's, or the folder that save_pretrained writes"
        )
    widths = {"base_dim": way_in[0], "decoder_base_dim": decoder[0] // 4, "z_dim": latent[0]}
    return {**VAE_CONFIGS[version], **widths}


def in_diffusers_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors as diffusers' class names them, by its own converter where it knows them."""
    bare = _bare(tensors)
    if _WAYS_IN[1] in bare:
        return bare
    try:
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
    except ImportError as error:
        raise ModelError(
            f"this diffusers has no converter for a single file of Wan's VAE ({error}): use 0.36 "
            "to 0.42, or give the folder that save_pretrained writes"
        ) from error
    renamed: dict[str, torch.Tensor] = convert_wan_vae_to_diffusers(
        {_of_levels(name): tensor for name, tensor in bare.items()}
    )
    return renamed


def _of_levels(name: str) -> str:
    found = _LEVELS.match(name)
    if found is None:
        return name
    half, level, place, rest = found.groups()
    if rest in _RESIDUAL:
        return f"{half}_blocks.{level}.resnets.{place}.{_RESIDUAL[rest]}"
    return f"{half}_blocks.{level}.{half.split('.')[1]}sampler.{rest}"


def _bare(named: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a repackager put before every name, and without notes that are no weights."""
    prefix = next(p for p in _PREFIXES if any(name.startswith(p) for name in named))
    own = ("encoder.", "decoder.", "conv1.", "conv2.", "quant_conv.", "post_quant_conv.")
    bare = {name.removeprefix(prefix): value for name, value in named.items()}
    return {name: value for name, value in bare.items() if name.startswith(own)}
