"""Wan's relatives in diffusers (Animate, SkyReels-V2): their class for a file, and its config.

A file says nothing of its config, so every figure of it is read off the tensors; the names go
through diffusers' own converter.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...errors import GeometryError
from ...layout.checkpoint import Checkpoint
from ...layout.geometry import naming_of
from ...layout.geometry.infer import measured_geometry
from ..skeleton import wan_config
from .diffusers_models import build_from_rows, model_class, wan_converter
from .stored_rows import rows_by_name

_Rows = Mapping[str, torch.Tensor]
# What diffusers' converter leaves as the vendor spells it.
_LEFT = (("fps_projection.0.", "fps_projection.net.0.proj."),
         ("fps_projection.2.", "fps_projection.net.2."))  # fmt: skip


def build_relative(checkpoint: Checkpoint, class_name: str, dtype: torch.dtype) -> torch.nn.Module:
    """Diffusers' class for a relative's file with `FileRows` for weights, as `from_pretrained`.

    Raises GeometryError where file and class do not have the same tensors.
    """
    found, label = model_class(class_name), checkpoint.label
    rows = rows_by_name(checkpoint)
    if naming_of(checkpoint.tensors) == "original":
        rows = wan_converter()({_renamed(name): tensor for name, tensor in rows.items()})
    stated = checkpoint.config or {}
    if stated.get("_class_name") == class_name:
        config = dict(stated)
    else:
        config = wan_config(measured_geometry(checkpoint))
        config |= _FIGURES[class_name](_Shapes(label, rows), config)
    return build_from_rows(found, config, rows, dtype, label)


def _renamed(name: str) -> str:
    for vendor, library in _LEFT:
        name = name.replace(vendor, library)
    return name


class _Shapes:
    """The shapes of a file's tensors, by diffusers' names."""

    def __init__(self, label: str, rows: _Rows) -> None:
        self._label = label
        self._rows = rows

    def of(self, name: str) -> tuple[int, ...]:
        """Raises GeometryError for a tensor that is not there, or has no axes."""
        found = self._rows.get(name)
        if found is None or found.dim() < 2:
            raise GeometryError(
                f"{self._label} lacks tensor {name}, which a model of its kind has: give the "
                "whole file"
            )
        return tuple(found.shape)

    def count(self, stem: str) -> int:
        """How many modules hang in the list `stem`; at least one."""
        indices = {name[len(stem) + 1 :].split(".")[0] for name in self._rows
                   if name.startswith(f"{stem}.")}  # fmt: skip
        if not indices:
            self.of(f"{stem}.0")
        return len(indices)


def _animate(shapes: _Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder of faces halves a picture once a block, from its size down to four."""
    blocks = shapes.count("motion_encoder.res_blocks")
    size = 2 ** (blocks + 2)
    channels = {str(size): shapes.of("motion_encoder.conv_in.weight")[0]}
    for index in range(blocks):
        out = shapes.of(f"motion_encoder.res_blocks.{index}.conv2.weight")[0]
        channels[str(size >> (index + 1))] = out
    hidden = shapes.of("face_encoder.conv2.weight")[1]
    out_dim, motion_dim = shapes.of("motion_encoder.motion_synthesis_weight")
    return {
        "latent_channels": shapes.of("pose_patch_embedding.weight")[1],
        "motion_encoder_channel_sizes": channels,
        "motion_encoder_size": size,
        "motion_style_dim": shapes.of("motion_encoder.conv_out.weight")[0],
        "motion_dim": motion_dim,
        "motion_encoder_dim": out_dim,
        "face_encoder_hidden_dim": hidden,
        "face_encoder_num_heads": shapes.of("face_encoder.conv1_local.weight")[0] // hidden,
        "inject_face_latents_blocks": config["num_layers"] // shapes.count("face_adapter"),
    }


def _skyreels(shapes: _Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """How many frames are denoised together is said to the pipeline, not by the file."""
    shapes.of("fps_embedding.weight")
    return {"inject_sample_info": True}


_FIGURES: Mapping[str, Callable[[_Shapes, Mapping[str, Any]], dict[str, Any]]] = {
    "WanAnimateTransformer3DModel": _animate,
    "SkyReelsV2Transformer3DModel": _skyreels,
}
