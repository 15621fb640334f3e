"""CLIP's image encoder in a single file of transformers' names: the config that shapes tell."""

from collections.abc import Mapping
from math import isqrt
from os import PathLike
from typing import Any

from ...errors import GeometryError

_PREFIX = "vision_model."  # which newer versions of the library write no more
_FIRST = "embeddings.patch_embedding.weight"
_PLACES = "embeddings.position_embedding.weight"
_WIDE = "encoder.layers.0.mlp.fc1.weight"
_LAYER = "encoder.layers."
# Width -> width of a head and activation, which leave no trace in shapes. Wan reads ViT-H's.
_KNOWN = {1280: (80, "gelu"), 1024: (64, "quick_gelu"), 768: (64, "quick_gelu")}


def clip_config(
    label: str | PathLike[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The config of a `CLIPVisionModel` with these tensors. Raises GeometryError for another."""
    shapes = {name.removeprefix(_PREFIX): shape for name, shape in shapes.items()}
    if not all(name in shapes for name in (_FIRST, _PLACES, _WIDE)):
        raise GeometryError(
            f"{label} is no image encoder in transformers' names: give clip_vision_h, or the "
            "folder that save_pretrained writes"
        )
    width, _, patch, _ = shapes[_FIRST]
    layers = {name.removeprefix(_LAYER).split(".")[0] for name in shapes if name.startswith(_LAYER)}
    if width not in _KNOWN:
        raise GeometryError(
            f"{label} is an image encoder {width} wide, whose heads its file does not tell: give "
            "the folder that save_pretrained writes"
        )
    head, activation = _KNOWN[width]
    return {
        "hidden_size": width,
        "intermediate_size": shapes[_WIDE][0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // head,
        "patch_size": patch,
        "image_size": isqrt(shapes[_PLACES][0] - 1) * patch,
        "hidden_act": activation,
    }
