"""Strays: this module owns what may lie in a checkpoint's files beside the transformer.

Nothing of a file is dropped without a word. Other whole models under their well-known prefixes,
notes of trainers and padding are no part of it; what else is outside of the transformer's prefix
could be a part that its forward needs (scales, an adapter, a second transformer), and is refused.
"""

import math
from collections.abc import Collection

from ...errors import GeometryError
from ..checkpoint import Checkpoint
from ..dtypes import ITEM_BYTES
from ..header import FileTensor
from ..prefix import ROOTS, is_marker, is_padding, transformer_prefix
from ..quoting import quote, some
from .families import relative_of, stranger_of

# How names begin of the other models of an all-in-one checkpoint: VAE, text and image encoders.
OTHER_MODELS = (
    "first_stage_model.",
    "vae.",
    "cond_stage_model.",
    "conditioner.",
    "text_encoders.",
    "text_encoder.",
    "clip_vision.",
    "image_encoder.",
)


def refuse_strays(checkpoint: Checkpoint) -> None:
    """Raises GeometryError where something beside the transformer may be a part of it."""
    strays = [tensor.name for tensor in _left_out(checkpoint) if not _harmless(checkpoint, tensor)]
    if not strays:
        return
    label, held = checkpoint.label, f"{_tensors(strays)} outside of {_place(checkpoint)}"
    if relative := relative_of(strays):
        raise GeometryError(
            f"{label} holds {held}, of {relative}, built on Wan with tensors of its own: give a "
            "file with the whole model under one prefix"
        )
    if what := stranger_of(strays):
        raise GeometryError(
            f"{label} holds {held}, which belong to {what}: give a file of the transformer "
            "alone, an adapter merged into it"
        )
    if any(transformer_prefix(name) is not None for name in strays):
        raise GeometryError(
            f"{label} holds {held}, of a transformer under another prefix: give a file with one "
            "transformer under one prefix"
        )
    raise GeometryError(
        f"{label} holds {held}, which may be scales or other parts that its forward needs: "
        "give a file of the transformer alone, or one without these tensors"
    )


def _left_out(checkpoint: Checkpoint) -> list[FileTensor]:
    names = set(checkpoint.left_out)
    return [t for header in checkpoint.headers for t in header.tensors if t.name in names]


def _harmless(checkpoint: Checkpoint, tensor: FileTensor) -> bool:
    name, eight_bits = tensor.name, _has_eight_bits(checkpoint)
    if is_padding(name) or name.startswith(OTHER_MODELS):
        return True
    if is_marker(name):
        return not (eight_bits and "scale" in name)
    # One number, or none, of a name that no part of a Wan model has: a trainer's note. Beside
    # weights of 8 bits it may be a scale.
    return (
        math.prod(tensor.shape) <= 1
        and not eight_bits
        and name.split(".", 1)[0] not in ROOTS
        and transformer_prefix(name) is None
        and stranger_of((name,)) is None
        and relative_of((name,)) is None
    )


def _has_eight_bits(checkpoint: Checkpoint) -> bool:
    return any(ITEM_BYTES[tensor.dtype] == 1 for tensor in checkpoint.tensors.values())


def _place(checkpoint: Checkpoint) -> str:
    prefix = checkpoint.prefix
    return f"its transformer's prefix {quote(prefix)}" if prefix else "its transformer"


def _tensors(names: Collection[str]) -> str:
    return f"tensor {some(names)}" if len(names) == 1 else f"{len(names)} tensors ({some(names)})"
