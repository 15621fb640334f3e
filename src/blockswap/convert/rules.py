"""Rules: this module owns which tensor of a checkpoint gets which dtype, and what is refused."""

from ..errors import ArgsError
from ..layout.checkpoint import Checkpoint, StoredTensor
from ..layout.geometry import to_diffusers_key, unit_of
from ..layout.geometry.families import stranger_of
from ..layout.geometry.verify import FILE_MARKS, SCALES
from ..layout.quoting import quote

# Eight bits without scales are a quantiser's work, not a cast.
TARGETS = ("bfloat16", "float16", "float32")
# What the official pipelines keep in fp32 when they load in another dtype: `_keep_in_fp32_modules`
# of diffusers' Wan classes, in diffusers' spelling (original: modulation, norm3, time_embedding).
KEPT_PARTS = frozenset({"rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"})
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
    return tensor.dtype if not everything and keeps_dtype(tensor.key) else wanted


def check_request(checkpoint: Checkpoint, dtype: str | None) -> None:
    """Raises ArgsError for a model without blocks, an unknown dtype, or a cast without sense."""
    label = checkpoint.label
    if not any((unit := unit_of(key)) and unit.kind == "block" for key in checkpoint.tensors):
        names = (*(t.name for t in checkpoint.tensors.values()), *checkpoint.left_out)
        what = stranger_of(names) or "no transformer with blocks"
        raise ArgsError(f"{label} is {what}: give the checkpoint of a Wan video transformer")
    if dtype is None:
        return
    if dtype not in TARGETS:
        raise ArgsError(f"dtype {quote(dtype)} is no target: use one of {', '.join(TARGETS)}")
    for tensor in checkpoint.tensors.values():
        if _is_quantised(tensor):
            raise ArgsError(
                f"{label} is quantised ({quote(tensor.name)} is {tensor.dtype}), a cast to {dtype} "
                "would tear its weights from their scales: convert it without a dtype"
            )


def _is_quantised(tensor: StoredTensor) -> bool:
    is_scale = tensor.key in FILE_MARKS or tensor.key.rpartition(".")[2] in SCALES
    # Weights are floating point; a matrix of whole numbers is packed by a quantiser.
    packed = tensor.dtype not in _CAST_FROM and len(tensor.shape) > 1
    return is_scale or packed
