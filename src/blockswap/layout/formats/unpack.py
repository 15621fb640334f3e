"""Unpacking: this module owns turning a quantised checkpoint's tensors into weights, by layer.

What comes out has a Wan model's names and shapes: a weight of several tensors is one, with its
`Packing`. Scales that nothing consumes stay, and are refused as all that no model has a place for.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ...errors import GeometryError
from ..checkpoint import Checkpoint, Packing, StoredTensor
from ..dtypes import FP8
from ..quoting import quote
from .scaled import (
    INPUT_SCALES,
    SCALES,
    check_broadcast,
    fp8_scaled,
    int8_scaled,
    mxfp8,
    nvfp4,
    quanto,
)
from .words import WORD, layer_words

_MARK = "scaled_fp8"
_SCALED = frozenset(SCALES)
_DATA, _DATA_SCALE = "weight._data", "weight._scale"
_TAILS = (
    *SCALES, *INPUT_SCALES, WORD, "weight_scale_2", "pre_quant_scale",
    "weight_s_rel", "weight_s_channel", "weight_codebook",
)  # fmt: skip
_KNOWN = "float8_e4m3fn, float8_e5m2, int8_tensorwise, mxfp8, nvfp4"


def unpacked(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with one tensor for each weight; the same where nothing is packed.

    Raises GeometryError where a layer is packed in a way that is not known, or not whole.
    """
    words = layer_words(checkpoint)
    layers = _layers(checkpoint, words)
    if not layers and _MARK not in checkpoint.tensors:
        return checkpoint
    _refuse_lost_scales(checkpoint, layers, words)
    tensors, dropped = dict(checkpoint.tensors), 0
    for key in (_MARK, *(f"{layer}.{WORD}" for layer in layers)):
        tensors.pop(key, None)
    for layer, parts in layers.items():
        packing = _packing(_Layer(checkpoint.label, layer, parts, words.get(layer)))
        if packing is not None:
            for part in packing.parts:
                tensors.pop(part.key)
            tensors[f"{layer}.weight"] = _weight(f"{layer}.weight", packing)
        if packing is not None or _is_eight_bit(parts.get("weight")):
            dropped += sum(_drop(tensors, layer, parts, name) for name in INPUT_SCALES)
    notes = checkpoint.notes
    if dropped:
        notes += (f"{dropped} scales of inputs in the file are not used: they are for products of "
                  "fp8 with fp8, and here weights are dequantised",)  # fmt: skip
    return replace(checkpoint, tensors=MappingProxyType(tensors), notes=notes)


def quantiser_keys(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The keys of what lies beside, or stands for, the weights of quantised layers."""
    layers = _layers(checkpoint, {}).values()
    return tuple(t.key for parts in layers for name, t in parts.items() if name != "weight")


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer with something beside its weight: its tensors by the last part of their names."""

    label: str
    name: str
    parts: Mapping[str, StoredTensor]
    word: Mapping[str, Any] | None

    def part(self, name: str) -> StoredTensor:
        found = self.parts.get(name)
        if found is None:
            raise GeometryError(
                f"{self.label} lacks {quote(f'{self.name}.{name}')}, without which the layer "
                "cannot be dequantised: give the whole checkpoint"
            )
        return found


def _layers(checkpoint: Checkpoint, words: Mapping[str, Any]) -> dict[str, dict[str, StoredTensor]]:
    """The layers that have a tensor of a quantiser, or of which the file says that they have."""
    layers: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in checkpoint.tensors.items():
        for tail in (_DATA, _DATA_SCALE, *_TAILS):
            if key.endswith(f".{tail}"):
                layers.setdefault(key[: -len(tail) - 1], {})[tail] = tensor
                break
    for layer in {**layers, **words}:
        weight = checkpoint.tensors.get(f"{layer}.weight")
        if weight is not None:
            layers.setdefault(layer, {})["weight"] = weight
    return {layer: parts for layer, parts in layers.items() if layer in words or _is_packed(parts)}


def _is_packed(parts: Mapping[str, StoredTensor]) -> bool:
    return _DATA in parts or WORD in parts or _is_eight_bit(parts.get("weight"))


def _is_eight_bit(weight: StoredTensor | None) -> bool:
    return weight is not None and weight.dtype in (*FP8, "int8", "uint8")


def _refuse_lost_scales(
    checkpoint: Checkpoint, layers: Mapping[str, Any], words: Mapping[str, Any]
) -> None:
    """An fp8 matrix without the scale that its like in another block has would compute as garbage.

    Beside the marker of scaled fp8 no scale at all is as wrong. What ComfyUI's words say is whole.
    """
    scaled = {
        _of_any_block(layer) for layer, parts in layers.items() if not _SCALED.isdisjoint(parts)
    }
    marked = _MARK in checkpoint.tensors and not scaled
    for key, tensor in checkpoint.tensors.items():
        layer = key.removesuffix(".weight")
        if tensor.dtype not in FP8 or len(tensor.shape) != 2 or layer == key or layer in words:
            continue
        if not marked and _of_any_block(layer) not in scaled:
            continue
        if _SCALED.isdisjoint(layers.get(layer, ())):
            why = "says that it is scaled" if marked else "its like in other blocks has one"
            raise GeometryError(
                f"{checkpoint.label} holds {quote(tensor.name)} in {tensor.dtype} without a scale, "
                f"and {why}: the file is damaged, download it again"
            )


def _of_any_block(layer: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", layer, count=1, flags=re.A)


def _packing(layer: _Layer) -> Packing | None:
    """How the layer's weight is packed; None for one that computes as it is stored, or is cast."""
    if layer.word is not None:
        return _told(layer, layer.word)
    if _DATA in layer.parts:
        return quanto(layer.label, layer.part(_DATA), layer.part(_DATA_SCALE))
    weight = layer.parts["weight"]
    scales = [name for name in SCALES if name in layer.parts]
    if weight.dtype in FP8 and len(scales) == 1:
        return fp8_scaled(layer.label, weight, layer.parts[scales[0]])
    if weight.dtype in FP8 and not scales:
        return None
    if weight.dtype == "int8" and scales:
        raise GeometryError(
            f"{layer.label} holds {quote(weight.name)} in int8 and does not say whether it was "
            f"rotated before ({layer.name}.{WORD} is missing): use a file that says so"
        )
    return None


def _told(layer: _Layer, word: Mapping[str, Any]) -> Packing | None:
    """A layer of which the file says how it is packed, in ComfyUI's words."""
    kind = word.get("format")
    make = _TOLD.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise GeometryError(
            f"{layer.label} is quantised as {quote(kind)} ({layer.name}), of which blockswap knows "
            f"{_KNOWN}: use one of those, or a bf16, fp16 or fp32 checkpoint"
        )
    if "pre_quant_scale" in layer.parts:
        raise GeometryError(
            f"{layer.label} holds {quote(layer.parts['pre_quant_scale'].name)}, which scales the "
            "inputs of its layer: diffusers' class has no place for it, use ComfyUI"
        )
    return make(layer, word)


def _told_fp8(layer: _Layer, word: Mapping[str, Any]) -> Packing | None:
    weight, said = layer.part("weight"), str(word["format"])
    if weight.dtype not in (said, "uint8"):
        raise GeometryError(
            f"{layer.label} holds {quote(weight.name)} in {weight.dtype} and says that it is "
            f"{said}: the file is damaged"
        )
    if "weight_scale" not in layer.parts:
        return None  # as in ComfyUI, its scale is one
    scale = layer.part("weight_scale")
    check_broadcast(layer.label, weight, scale)
    return fp8_scaled(layer.label, weight.as_dtype(said), scale)


def _told_int8(layer: _Layer, word: Mapping[str, Any]) -> Packing:
    inner = word.get("params")
    said = {**(inner if isinstance(inner, dict) else {}), **word}
    rotation = said.get("convrot_groupsize", 256) if said.get("convrot", False) else 0
    if type(rotation) is not int:
        rotation = -1
    weight, scale = layer.part("weight"), layer.part("weight_scale")
    check_broadcast(layer.label, weight, scale)
    return int8_scaled(layer.label, weight, scale, rotation=rotation)


def _told_mxfp8(layer: _Layer, word: Mapping[str, Any]) -> Packing:
    return mxfp8(layer.label, layer.part("weight"), layer.part("weight_scale"))


def _told_nvfp4(layer: _Layer, word: Mapping[str, Any]) -> Packing:
    for name in ("weight_scale", "weight_scale_2"):
        layer.part(name)
    return nvfp4(layer.label, layer.part("weight"), layer.parts)


_TOLD: Mapping[str, Callable[[_Layer, Mapping[str, Any]], Packing | None]] = {
    "float8_e4m3fn": _told_fp8,
    "float8_e5m2": _told_fp8,
    "int8_tensorwise": _told_int8,
    "mxfp8": _told_mxfp8,
    "nvfp4": _told_nvfp4,
}


def _weight(key: str, packing: Packing) -> StoredTensor:
    """A packed weight as one tensor of its logical shape."""
    first = packing.parts[0]
    return replace(
        first,
        key=key,
        shape=packing.shape or first.shape,
        nbytes=sum(part.nbytes for part in packing.parts),
        packing=packing,
    )


def _drop(
    tensors: dict[str, StoredTensor], layer: str, parts: Mapping[str, StoredTensor], name: str
) -> int:
    return 0 if name not in parts or tensors.pop(f"{layer}.{name}", None) is None else 1
