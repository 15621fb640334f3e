"""Verification: this module owns comparing a checkpoint with the tensors its geometry demands."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ...errors import GeometryError
from ..checkpoint import StoredTensor
from ..dtypes import ITEM_BYTES
from ..prefix import ROOTS
from ..quoting import quote, some
from .naming import to_diffusers_key
from .tensors import tensor_names
from .values import WanGeometry

# What quantised files add beside a layer's weight, or once for the file.
SCALES = ("scale_weight", "scale_input", "weight_scale", "input_scale", "comfy_quant")
FILE_MARKS = ("scaled_fp8",)
# Early diffusers I2V files hold it; the model itself never reads it.
_UNUSED = ".norm_added_q.weight"


def verify_tensors(
    label: str, tensors: Mapping[str, StoredTensor], geometry: WanGeometry
) -> WanGeometry:
    """Compares `tensors` (by original key) with the full list of names and shapes.

    Returns the geometry with `extras` and `unused` filled in. Raises GeometryError.
    """
    expected = tensor_names(geometry)
    model = f"a Wan transformer of {geometry.num_layers} blocks, {geometry.dim} wide,"
    missing = [key for key in expected if key not in tensors]
    if missing:
        if geometry.naming == "diffusers":
            missing = [to_diffusers_key(key) for key in missing]
        raise GeometryError(
            f"{label} lacks {_tensors(missing)}, which {model} has: give the whole checkpoint"
        )
    for key, shape in expected.items():
        if tensors[key].shape != shape:
            raise GeometryError(
                f"{label}: {quote(tensors[key].name)} is {quote(list(tensors[key].shape))}, "
                f"{model} has {list(shape)} there: the file is packed by a quantiser or is "
                "another model's"
            )
    beside = [key for key in tensors if key not in expected]
    extras = [key for key in beside if _is_scale(key, expected)]
    unused = unread_keys(beside, tensors)
    known = {*extras, *unused}
    strange = [tensors[key].name for key in beside if key not in known]
    if strange:
        raise GeometryError(
            f"{label} holds {_tensors(strange)} too many, which {model} does not have: "
            "it is another model's or holds more than a transformer"
        )
    return replace(
        geometry,
        extras=tuple(tensors[key].key for key in extras),
        unused=tuple(tensors[key].key for key in unused),
    )


def _tensors(names: list[str]) -> str:
    if len(names) == 1:
        return f"tensor {quote(names[0])}"
    return f"{len(names)} tensors ({some(names)})"


def unread_keys(beside: Iterable[str], tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Of the keys `beside` a model's own, those that no forward would read."""
    # Beside weights of 8 bits a lone number may be a scale.
    plain = not any(ITEM_BYTES[tensor.dtype] == 1 for tensor in tensors.values())
    return [k for k in beside if k.endswith(_UNUSED) or (plain and _is_marker(tensors[k]))]


def _is_marker(tensor: StoredTensor) -> bool:
    """One number, or none, of a name that no part of a Wan model has: a trainer's note."""
    root = tensor.key.split(".", 1)[0]
    return math.prod(tensor.shape) <= 1 and root not in ROOTS


def _is_scale(key: str, expected: Mapping[str, tuple[int, ...]]) -> bool:
    layer, _, last = key.rpartition(".")
    return key in FILE_MARKS or (last in SCALES and f"{layer}.weight" in expected)
