"""Which parts make which kind of adapter, what each adds, and which shapes are refused.

The scale is PEFT's: strength * alpha / rank, in that order, the alpha being the rank where a file
has none; for rsLoRA the root of the rank divides. LoKr of two whole factors has no rank, and its
alpha is without meaning, as in LyCORIS.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..decode.additions import Addition, Difference, Hadamard, Kronecker, LowRank, Scale
from ..decode.merge import Merged
from ..errors import CheckpointError, GeometryError
from ..layout.header import FileTensor
from ..layout.quoting import quote, some
from .file import Layer, LoraFile

Shape = tuple[int, ...]
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LEFT = (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
_RIGHT = (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))


@dataclass(frozen=True, slots=True)
class Change:
    """What one file does to one tensor of the model: what is merged, and its arrays in order."""

    merged: Merged
    tensors: tuple[FileTensor, ...]


def weight_changes(file: LoraFile, layer: Layer, shape: Shape, model: str) -> list[Change]:
    """What a layer's adapter does to its weight. Raises CheckpointError or GeometryError."""
    parts, changes = layer.parts, []
    left = set(parts) - {"diff", "diff_b", "up_bias"}
    names: tuple[str, ...] = ()
    addition: Addition | None = None
    if {"down", "up"} <= left:
        names = ("down", "up")
        addition = _low_rank(file, layer, shape, model)
    elif set(_HADA) <= left:
        names = _HADA
        addition = _hadamard(file, layer, shape, model)
    elif any(set(side) <= left for side in _LEFT) and any(set(side) <= left for side in _RIGHT):
        names = (*_side(left, _LEFT), *_side(left, _RIGHT))
        addition = _kronecker(file, layer, shape, model)
    magnitude = addition is not None and "magnitude" in left and names == ("down", "up")
    names = (*names, "magnitude") if magnitude else names
    if left - set(names):
        raise CheckpointError(
            f"{file.label}: {layer.path} has {some(sorted(left))}, which is no whole LoRA, LoHa, "
            "LoKr or DoRA: the file is damaged or of a kind that is not read"
        )
    if addition is not None:
        if magnitude:
            _check_magnitude(file, layer, shape)
        changes.append(Change(Merged(addition, magnitude), _tensors(parts, names)))
    if "diff" in parts:
        changes.append(_difference(file, layer, parts["diff"], shape, model))
    return changes


def bias_changes(file: LoraFile, layer: Layer, shape: Shape, model: str) -> list[Change]:
    """What a layer's adapter does to its bias: a difference, or a LoRA's own bias, scaled."""
    changes = []
    if "up_bias" in layer.parts:
        rank = layer.parts["down"].shape[0] if "down" in layer.parts else 1
        scale = _scale(file, layer, rank)
        tensor = layer.parts["up_bias"]
        _check_whole(file, layer, tensor, shape, model)
        changes.append(Change(Merged(Difference(scale)), (tensor,)))
    if "diff_b" in layer.parts:
        changes.append(_difference(file, layer, layer.parts["diff_b"], shape, model))
    return changes


def _low_rank(file: LoraFile, layer: Layer, shape: Shape, model: str) -> LowRank:
    """Of a linear layer, or of a convolution whose second factor is a point."""
    down, up = layer.parts["down"].shape, layer.parts["up"].shape
    if len(shape) > 2 and down[1:] == shape[1:] and up[2:] == (1,) * len(shape[2:]):
        shape, down, up = map(_as_matrix, (shape, down, up))
    _check_linear(file, layer, shape, (down, up))
    _check_product(file, layer, (up, down), shape, model)
    return LowRank(down, up, _scale(file, layer, down[0]))


def _hadamard(file: LoraFile, layer: Layer, shape: Shape, model: str) -> Hadamard:
    a1, b1, a2, b2 = (layer.parts[name].shape for name in _HADA)
    _check_linear(file, layer, shape, (a1, b1, a2, b2))
    _check_product(file, layer, (a1, b1), shape, model)
    _check_product(file, layer, (a2, b2), shape, model)
    return Hadamard((a1, b1, a2, b2), _scale(file, layer, b1[0]))


def _kronecker(file: LoraFile, layer: Layer, shape: Shape, model: str) -> Kronecker:
    left, right = (
        tuple(layer.parts[name].shape for name in _side(set(layer.parts), sides))
        for sides in (_LEFT, _RIGHT)
    )
    _check_linear(file, layer, shape, (*left, *right))
    (rows, columns), (more_rows, more_columns) = (
        (side[0][0], side[-1][1]) for side in (left, right)
    )
    for side in (left, right):
        if len(side) == 2:
            _check_product(file, layer, side, (side[0][0], side[1][1]), model)
    if (rows * more_rows, columns * more_columns) != shape:
        _refuse_size(file, layer, (rows * more_rows, columns * more_columns), shape, model)
    ranks = [side[1][0] for side in (right, left) if len(side) == 2]
    rank = ranks[0] if ranks else layer.rank
    scale = Scale(file.strength) if rank is None else _scale(file, layer, rank)
    return Kronecker(left, right, scale)


def _difference(
    file: LoraFile, layer: Layer, tensor: FileTensor, shape: Shape, model: str
) -> Change:
    _check_whole(file, layer, tensor, shape, model)
    return Change(Merged(Difference(Scale(file.strength))), (tensor,))


def _as_matrix(shape: Shape) -> Shape:
    return shape[0], math.prod(shape[1:])


def _scale(file: LoraFile, layer: Layer, rank: float) -> Scale:
    alpha = float(rank) if layer.alpha is None else layer.alpha
    return Scale(file.strength, alpha, math.sqrt(rank) if layer.root_of_rank else rank)


def _side(parts: set[str], sides: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return next(side for side in sides if set(side) <= parts)


def _tensors(parts: Mapping[str, FileTensor], names: Sequence[str]) -> tuple[FileTensor, ...]:
    return tuple(parts[name] for name in names)


def _check_linear(file: LoraFile, layer: Layer, shape: Shape, factors: Sequence[Shape]) -> None:
    if len(shape) != 2 or any(len(factor) != 2 or 0 in factor for factor in factors):
        raise GeometryError(
            f"{file.label}: {layer.path} has an adapter for a linear layer's weight, and its "
            f"factors or the model's weight ({list(shape)}) are none: of adapters of convolutions "
            "a LoRA with lora_up of one point is read"
        )


def _check_product(
    file: LoraFile, layer: Layer, factors: Sequence[Shape], shape: Shape, model: str
) -> None:
    (rows, inner), (rank, columns) = factors
    if inner != rank:
        raise CheckpointError(
            f"{file.label}: the factors of {layer.path} have ranks {inner} and {rank}: the file is "
            "damaged, download it again"
        )
    if (rows, columns) != shape:
        _refuse_size(file, layer, (rows, columns), shape, model)


def _check_whole(
    file: LoraFile, layer: Layer, tensor: FileTensor, shape: Shape, model: str
) -> None:
    if _without_ones(tensor.shape) != _without_ones(shape):
        _refuse_size(file, layer, tensor.shape, shape, model)


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _check_magnitude(file: LoraFile, layer: Layer, shape: Shape) -> None:
    found = layer.parts["magnitude"].shape
    if len(shape) != 2 or found not in (shape[:1], (shape[0], 1)):
        raise CheckpointError(
            f"{file.label}: {quote(layer.parts['magnitude'].name)} is {list(found)}, and a DoRA is "
            f"read with one magnitude for each of {shape[0]} rows: save it so, or merge it"
        )


def _refuse_size(file: LoraFile, layer: Layer, found: Shape, shape: Shape, model: str) -> None:
    raise GeometryError(
        f"{file.label} is a LoRA of a model of another size: it changes {layer.path} by "
        f"{list(found)}, and the {model} has {list(shape)} there: give the LoRA of this model"
    )
