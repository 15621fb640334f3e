"""Rules: this module owns which tensor of a checkpoint gets which dtype, and what is refused."""

from collections.abc import Iterator, Mapping

from ..errors import ArgsError, GeometryError
from ..layout.checkpoint import Checkpoint, StoredTensor
from ..layout.dtypes import ITEM_BYTES
from ..layout.formats import unpacked
from ..layout.formats.main_dtype import keeps_dtype
from ..layout.geometry import (
    WanGeometry,
    infer_geometry,
    tensor_names,
    to_diffusers_key,
    to_original_key,
    unit_of,
)
from ..layout.geometry.families import stranger_of
from ..layout.geometry.infer import check_family
from ..layout.geometry.strays import refuse_strays
from ..layout.geometry.verify import FILE_MARKS, SCALES
from ..layout.prefix import ROOTS
from ..layout.quoting import quote
from .eight_bits import FP8_SCALED

# What a cast makes; eight bits take scales (`eight_bits.FP8_SCALED`).
TARGETS = ("bfloat16", "float16", "float32")
_EIGHT_BITS = frozenset({dtype for dtype, nbytes in ITEM_BYTES.items() if nbytes == 1})
# How the name of a Wan tensor ends, in either spelling.
_OWN_ENDS = frozenset({"weight", "bias", "modulation", "scale_shift_table", "emb_pos", "pos_embed"})
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


def new_dtype(tensor: StoredTensor, wanted: str | None, *, everything: bool) -> str:
    """The dtype that a tensor of the transformer will have."""
    if tensor.packing is not None:
        return wanted or tensor.dtype
    if wanted is None or tensor.dtype not in _CAST_FROM:
        return tensor.dtype
    if (
        tensor.dtype in _EIGHT_BITS
    ):  # to keep 8 bits keeps no precision, and nothing computes in them
        return wanted
    return tensor.dtype if not everything and keeps_dtype(tensor.key) else wanted


def check_request(checkpoint: Checkpoint, dtype: str | None) -> None:
    """Raises ArgsError for a stranger's file, an unknown dtype, or a cast without sense."""
    if checkpoint.in_gguf and dtype is None:
        raise ArgsError(
            f"{checkpoint.label} is a GGUF file, and convert writes safetensors, which have no "
            f"blocks: give a dtype ({', '.join(TARGETS)}) to dequantise it"
        )
    _check_stranger(checkpoint)
    _check_dtype(checkpoint, dtype)
    try:
        refuse_strays(checkpoint)
    except GeometryError as error:
        raise ArgsError(str(error)) from error


def read_geometry(checkpoint: Checkpoint) -> tuple[WanGeometry | None, str]:
    """The geometry as a reader finds it; or None, and why the checkpoint is refused as it is.

    A file that is read by skeletons of the caller's own, or a part of one, may be converted: all
    that it holds and says goes along. A config.json does not, so beside one the checkpoint must
    open. Raises ArgsError where it does not.
    """
    try:
        return infer_geometry(unpacked(checkpoint)), ""
    except GeometryError as error:
        if checkpoint.config is not None:
            raise ArgsError(str(error)) from error
        return None, str(error)


def _check_dtype(checkpoint: Checkpoint, dtype: str | None) -> None:
    if dtype is None:
        return
    if dtype not in (*TARGETS, FP8_SCALED):
        known = ", ".join((*TARGETS, FP8_SCALED))
        raise ArgsError(f"dtype {quote(dtype)} is no target: use one of {known}")
    for name, why in _torn_by_a_cast(checkpoint):
        raise ArgsError(
            f"{checkpoint.label} is quantised ({quote(name)} is {why}), a cast to "
            f"{dtype} would tear its weights from their scales: convert it without a dtype"
        )


def _check_stranger(checkpoint: Checkpoint) -> None:
    """A file may hold some of a Wan model's tensors; one whose blocks are not mostly made of Wan's
    layers, or with the marks of a known stranger, is another model's."""
    names = (*(tensor.name for tensor in checkpoint.tensors.values()), *checkpoint.left_out)
    units = [unit for key in checkpoint.tensors if (unit := unit_of(key))]
    parts = [unit.rest for unit in units if unit.kind in ("block", "vace")]
    own = sum(any(f"{part}.".startswith(f"{layer}.") for layer in _OWN_LAYERS) for part in parts)
    blocks = any(unit.kind == "block" for unit in units)
    if stranger_of(names) or not blocks or 2 * own <= len(parts):
        try:
            check_family(checkpoint)
        except GeometryError as error:
            raise ArgsError(str(error)) from error


def _own_layers() -> frozenset[str]:
    """Where the tensors of a block hang in it, in both spellings, for all of Wan's models."""
    all_kinds = WanGeometry(
        dim=256, ffn_dim=512, num_layers=1, num_heads=2, added_kv=True, vace_layers=(0,)
    )
    keys = tensor_names(all_kinds)
    units = [unit_of(spelt(key)) for key in keys for spelt in (to_original_key, to_diffusers_key)]
    rests = [unit.rest for unit in units if unit and unit.kind in ("block", "vace")]
    return frozenset(rest.removesuffix(".weight").removesuffix(".bias") for rest in rests)


_OWN_LAYERS = _own_layers()


def _torn_by_a_cast(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """The tensors that only a quantiser writes, and what each is."""
    tensors = checkpoint.tensors
    for tensor in tensors.values():
        if tensor.packing is not None:
            continue  # it is dequantised, and not cast
        last = tensor.key.rpartition(".")[2]
        is_scale = tensor.key in FILE_MARKS or last in SCALES
        # Weights are floating point; a matrix of whole numbers is packed by a quantiser.
        if is_scale or (tensor.dtype not in _CAST_FROM and len(tensor.shape) > 1):
            yield tensor.name, tensor.dtype
        elif why := _beside_eight_bits(tensor, tensors):
            yield tensor.name, why
    if any(t.dtype in _EIGHT_BITS and t.packing is None for t in tensors.values()):
        yield from (
            (t.name, "no weight of Wan's, beside weights of 8 bits")
            for t in tensors.values()
            if not _is_own(t.key)
        )
        yield from ((name, "outside of the model, beside weights of 8 bits")
                    for name in checkpoint.left_out if "scale" in name)  # fmt: skip


def _is_own(key: str) -> bool:
    return key.split(".", 1)[0] in ROOTS and key.rpartition(".")[2] in _OWN_ENDS


def _beside_eight_bits(tensor: StoredTensor, tensors: Mapping[str, StoredTensor]) -> str | None:
    """Whatever it is called: what lies beside an 8-bit weight and is not its layer's own is a
    scale (or a zero point) until known otherwise."""
    owner = tensor.key
    while "." in owner:
        owner = owner.rpartition(".")[0]
        weight = tensors.get(f"{owner}.weight")
        if weight is None or weight is tensor or weight.dtype not in _EIGHT_BITS:
            continue
        if weight.packing is not None:
            continue
        if tensor.key != f"{owner}.bias":
            return f"a tensor of its own beside a weight of {weight.dtype}"
    return None
