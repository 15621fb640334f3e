"""The main dtype: this module owns in which dtype a checkpoint computes when nobody says.

That of most bytes. Beside weights of fewer bits it is the 16-bit one of most bytes, or bfloat16:
what such files keep in fp32 is little, and nobody who quantised a model computes in it.
"""

from collections.abc import Iterable

from ...errors import GeometryError
from ..checkpoint import StoredTensor
from ..dtypes import HALVES, ITEM_BYTES
from ..geometry.naming import to_diffusers_key
from ..quoting import quote

# What the official pipelines keep in fp32 when they load in another dtype: `_keep_in_fp32_modules`
# of diffusers' Wan classes, in diffusers' spelling (original: modulation, norm3, time_embedding).
KEPT_PARTS = frozenset({"rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"})
_DEFAULT = "bfloat16"


def keeps_dtype(key: str) -> bool:
    """Whether official pipelines keep the tensor (key in either naming) out of a cast."""
    return not KEPT_PARTS.isdisjoint(to_diffusers_key(key).split("."))


def computed_dtype(
    stored: StoredTensor, asked: str | None, main: str | None, *, kept: bool, inside: bool
) -> str:
    """What a stored tensor computes in, `asked` by the caller or in a file of this `main` dtype.

    `kept`: official pipelines keep it in fp32; `inside` a unit: there a kept 16-bit tensor meets
    fp32 activations and is widened where it is used, which gives the same bits without a decode of
    every block. Outside 16-bit operands meet, and it shows. No `main`: what is not packed computes
    as it is stored.
    """
    if stored.packing is not None:
        return "float32" if kept else asked or main or _DEFAULT
    if "float" not in stored.dtype:
        return stored.dtype
    if asked is not None:
        return "float32" if kept else asked
    if main is None:
        return stored.dtype
    if not kept:
        return main
    return stored.dtype if inside and stored.dtype in HALVES else "float32"


def refuse_whole_numbers(label: str, weight: StoredTensor) -> None:
    """Raises GeometryError for a weight of a dtype in which no layer computes."""
    if weight.packing is None and "float" not in weight.dtype:
        raise GeometryError(
            f"{label} stores tensor {quote(weight.name)} as {weight.dtype}, and weights compute in "
            "floating point: it is quantised or damaged, open a bf16, fp16 or fp32 checkpoint"
        )


def is_quantised(tensor: StoredTensor) -> bool:
    """Whether the tensor is packed, or floating point that does not compute."""
    return tensor.packing is not None or (
        tensor.dtype.startswith("float") and ITEM_BYTES[tensor.dtype] == 1
    )


def main_dtype(tensors: Iterable[StoredTensor]) -> str | None:
    """The dtype as torch spells it, the first of equals in the file; None without any floats."""
    sizes: dict[str, int] = {}
    quantised = False
    for tensor in tensors:
        if is_quantised(tensor):
            quantised = True
        elif tensor.dtype.endswith(("float16", "float32", "float64")):
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    if quantised:
        halves = {dtype: size for dtype, size in sizes.items() if dtype in HALVES}
        return max(halves, key=halves.__getitem__, default=_DEFAULT)
    return max(sizes, key=sizes.__getitem__, default=None)
