"""Scaled weights: this module owns how a scale beside an 8-bit weight divides that weight.

[] [1] [1,1]    one scale for the tensor         [out] [out,1]   one a row
[out,n,1]       one for in/n numbers of a row    [a,b]           one a block of out/a x in/b
"""

import math
from collections.abc import Mapping

from ...errors import GeometryError
from ..checkpoint import Packing, StoredTensor
from ..dtypes import FP8
from ..quoting import quote
from ..slab import align_up

# What lies beside a weight and multiplies it, whose product it is, and what only fp8 products of
# activations need.
SCALES = ("scale_weight", "weight_scale", "weight_scale_inv", "scale", "wscale")
INVERSE = "weight_scale_inv"
INPUT_SCALES = ("scale_input", "input_scale", "output_scale")


def fp8_scaled(label: str, weight: StoredTensor, scale: StoredTensor) -> Packing:
    """An fp8 weight and its scale."""
    grid = _grid(label, weight, scale)
    _check_floating(label, scale)
    name = "fp8 in blocks" if scale.key.endswith(INVERSE) else "fp8 scaled"
    if name == "fp8 scaled" and len(scale.shape) == 3:
        name = "fp8 in groups"
    return Packing(name, (weight, scale), grid)


def int8_scaled(
    label: str, weight: StoredTensor, scale: StoredTensor, *, rotation: int = 0
) -> Packing:
    """An int8 weight and its scale; `rotation` is the width of the groups it was rotated in."""
    _check_dtype(label, weight, ("int8",))
    _check_floating(label, scale)
    grid = _grid(label, weight, scale)
    if rotation and (rotation < 4 or 4 ** round(math.log(rotation, 4)) != rotation):
        raise GeometryError(
            f"{label}: {quote(weight.name)} was rotated in groups of {rotation}, which is no power "
            "of four: the file is damaged or of a newer kind"
        )
    if rotation and weight.shape[-1] % rotation:
        raise GeometryError(
            f"{label}: {quote(weight.name)} is {list(weight.shape)}, which groups of {rotation} "
            "do not divide: the file is damaged"
        )
    return Packing("int8 rotated" if rotation else "int8 scaled", (weight, scale), grid, rotation)


def check_broadcast(label: str, weight: StoredTensor, scale: StoredTensor) -> None:
    """Scales as ComfyUI's layers multiply by them, which knows no others: one, or one a row."""
    rows = weight.shape[0] if weight.shape else 0
    if math.prod(scale.shape) != 1 and scale.shape != (rows, 1):
        raise GeometryError(
            f"{label}: {quote(scale.name)} is {list(scale.shape)}, where ComfyUI's layers of "
            f"{list(weight.shape)} have one scale, or [{rows}, 1]: the file is damaged or of a "
            "newer kind"
        )


def quanto(label: str, data: StoredTensor, scale: StoredTensor) -> Packing:
    """A weight of quanto, 8 bits with a scale a row."""
    if data.dtype != "int8" and data.dtype not in FP8:
        raise GeometryError(
            f"{label} is quantised by quanto into {data.dtype} ({quote(data.name)}), of which "
            "blockswap decodes 8 bits (qint8, qfloat8): use such a file, or a bf16 one"
        )
    _check_floating(label, scale)
    return Packing("quanto", (data, scale), _grid(label, data, scale))


def mxfp8(label: str, weight: StoredTensor, scale: StoredTensor) -> Packing:
    """fp8 with one exponent for 32 numbers of a row, in the tiles that tensor cores take."""
    rows, columns = _matrix(label, weight)
    grid = (rows, columns // 32)
    scale = _tiles(label, scale, grid, "float8_e8m0fnu")
    _check_dtype(label, weight, ("float8_e4m3fn",))
    if columns % 32:
        raise _odd(label, weight, 32)
    return Packing("mxfp8", (weight, scale), grid)


def nvfp4(label: str, weight: StoredTensor, tensors: Mapping[str, StoredTensor]) -> Packing:
    """Two 4-bit numbers a byte, an fp8 scale for 16 of a row, and one scale for all."""
    rows, columns = _matrix(label, weight)
    grid = (rows, 2 * columns // 16)
    _check_dtype(label, weight, ("uint8",))
    if 2 * columns % 16:
        raise _odd(label, weight, 16)
    whole = tensors["weight_scale_2"]
    _check_floating(label, whole)
    if math.prod(whole.shape) != 1:
        raise _odd_scale(label, weight, whole)
    blocks = _tiles(label, tensors["weight_scale"], grid, "float8_e4m3fn")
    return Packing("nvfp4", (weight, blocks, whole), grid, shape=(rows, 2 * columns))


def _grid(label: str, weight: StoredTensor, scale: StoredTensor) -> tuple[int, int]:
    """How many scales stand above each other and side by side."""
    rows, columns = _matrix(label, weight)
    shape = scale.shape
    if math.prod(shape) == 1:
        return 1, 1
    if shape in ((rows,), (rows, 1), (rows, 1, 1)):
        return rows, 1
    if len(shape) == 3 and shape[2] == 1:
        shape = shape[:2]
    if len(shape) == 2 and all(shape) and not (rows % shape[0] or columns % shape[1]):
        return shape[0], shape[1]
    raise _odd_scale(label, weight, scale)


def _tiles(label: str, scale: StoredTensor, grid: tuple[int, int], dtype: str) -> StoredTensor:
    """Scales in tiles of 128 x 4, padded to whole ones; bytes stand for the numbers as well."""
    _check_dtype(label, scale, ("uint8", dtype))
    if math.prod(scale.shape) != align_up(grid[0], 128) * align_up(grid[1], 4):
        raise GeometryError(
            f"{label}: {quote(scale.name)} is {list(scale.shape)}, and its weight needs "
            f"{grid[0]} x {grid[1]} scales in tiles of 128 x 4: the file is damaged"
        )
    return scale.as_dtype(dtype)


def _matrix(label: str, weight: StoredTensor) -> tuple[int, int]:
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise GeometryError(
            f"{label}: {quote(weight.name)} is {list(weight.shape)} of {weight.dtype} with a "
            "scale, and only matrices are known so: use a bf16, fp16 or fp32 checkpoint"
        )
    return weight.shape[0], weight.shape[1]


def _check_floating(label: str, scale: StoredTensor) -> None:
    _check_dtype(label, scale, ("float32", "bfloat16", "float16"))


def _check_dtype(label: str, tensor: StoredTensor, wanted: tuple[str, ...]) -> None:
    if tensor.dtype not in wanted:
        raise GeometryError(
            f"{label}: {quote(tensor.name)} is {tensor.dtype}, where this format has "
            f"{' or '.join(wanted)}: the file is damaged or of a newer kind"
        )


def _odd(label: str, weight: StoredTensor, group: int) -> GeometryError:
    return GeometryError(
        f"{label}: {quote(weight.name)} is {list(weight.shape)}, which groups of {group} do not "
        "divide: the file is damaged"
    )


def _odd_scale(label: str, weight: StoredTensor, scale: StoredTensor) -> GeometryError:
    return GeometryError(
        f"{label}: {quote(scale.name)} is {list(scale.shape)}, which does not divide its weight "
        f"of {list(weight.shape)}: the file is damaged or of a newer kind"
    )
