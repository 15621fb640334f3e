"""Rules: this module owns which tensor of a checkpoint gets which dtype, and what is refused."""

from collections.abc import Mapping

from ..errors import ArgsError, GeometryError
from ..layout.checkpoint import Checkpoint, StoredTensor
from ..layout.dtypes import ITEM_BYTES
from ..layout.geometry import to_diffusers_key, unit_of
from ..layout.geometry.families import stranger_of
from ..layout.geometry.infer import check_family
from ..layout.geometry.verify import FILE_MARKS, SCALES
from ..layout.prefix import ROOTS
from ..layout.quoting import quote

# Eight bits without scales are a quantiser's work, not a cast.
TARGETS = ("bfloat16", "float16", "float32")
# What the official pipelines keep in fp32 when they load in another dtype: `_keep_in_fp32_modules`
# of diffusers' Wan classes, in diffusers' spelling (original: modulation, norm3, time_embedding).
KEPT_PARTS = frozenset({"rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"})
_EIGHT_BITS = frozenset({dtype for dtype, nbytes in ITEM_BYTES.items() if nbytes == 1})
_CAST_FROM = frozenset(
    {
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
    }
)


def keeps_dtype(key: str) -> bool:
    """Whether official pipelines keep the tensor (key in either naming) out of a cast."""
    return not KEPT_PARTS.isdisjoint(to_diffusers_key(key).split("."))


def new_dtype(tensor: StoredTensor, wanted: str | None, *, everything: bool) -> str:
    """The dtype that a tensor of the transformer will have."""
    if wanted is None or tensor.dtype not in _CAST_FROM:
        return tensor.dtype
    if (
        tensor.dtype in _EIGHT_BITS
    ):  # to keep 8 bits keeps no precision, and nothing computes in them
        return wanted
    return tensor.dtype if not everything and keeps_dtype(tensor.key) else wanted


def check_request(checkpoint: Checkpoint, dtype: str | None) -> None:
    """Raises ArgsError for a stranger's file, an unknown dtype, or a cast without sense."""
    _check_stranger(checkpoint)
    if dtype is None:
        return
    if dtype not in TARGETS:
        raise ArgsError(f"dtype {quote(dtype)} is no target: use one of {', '.join(TARGETS)}")
    for tensor in checkpoint.tensors.values():
        if why := _torn_by_a_cast(tensor, checkpoint.tensors):
            raise ArgsError(
                f"{checkpoint.label} is quantised ({quote(tensor.name)} is {why}), a cast to "
                f"{dtype} would tear its weights from their scales: convert it without a dtype"
            )


def _check_stranger(checkpoint: Checkpoint) -> None:
    """Blocks alone may be anybody's parts; with names beside them that no Wan model has, or with
    those of a known stranger, a file is another model's."""
    names = (*(tensor.name for tensor in checkpoint.tensors.values()), *checkpoint.left_out)
    outside = [key for key in checkpoint.tensors if unit_of(key) is None]
    known = any(key.split(".", 1)[0] in ROOTS for key in outside)
    blocks = any((unit := unit_of(key)) and unit.kind == "block" for key in checkpoint.tensors)
    if stranger_of(names) or not blocks or (outside and not known):
        try:
            check_family(checkpoint)
        except GeometryError as error:
            raise ArgsError(str(error)) from error


def _torn_by_a_cast(tensor: StoredTensor, tensors: Mapping[str, StoredTensor]) -> str | None:
    """What a tensor is that only a quantiser writes, or None."""
    last = tensor.key.rpartition(".")[2]
    if tensor.key in FILE_MARKS or last in SCALES:
        return tensor.dtype
    # Weights are floating point; a matrix of whole numbers is packed by a quantiser.
    if tensor.dtype not in _CAST_FROM and len(tensor.shape) > 1:
        return tensor.dtype
    return _beside_eight_bits(tensor, tensors)


def _beside_eight_bits(tensor: StoredTensor, tensors: Mapping[str, StoredTensor]) -> str | None:
    """Whatever it is called: what lies beside an 8-bit weight and is not its layer's own is a
    scale (or a zero point) until known otherwise."""
    owner, last = tensor.key, tensor.key
    while "." in owner:
        owner, _, last = owner.rpartition(".")
        weight = tensors.get(f"{owner}.weight")
        if weight is None or weight is tensor or weight.dtype not in _EIGHT_BITS:
            continue
        if tensor.key != f"{owner}.bias":
            return f"a tensor of its own, {quote(last)}, beside a weight of {weight.dtype}"
    return None
