"""Inference: this module owns reading a Wan transformer's geometry off the tensors of a checkpoint.

Sizes are taken from a handful of tensors; then the complete list of names and shapes that such a
model has is compared with what the checkpoint holds, so that nothing else has to check again.
"""

import math
from collections.abc import Collection, Mapping

from ...errors import GeometryError, OtherModelError
from ..checkpoint import Checkpoint, StoredTensor
from ..quoting import quote
from .claims import check_claims, check_vace_count, refuse_no_vace
from .families import relative_of, stranger_of, what_opens
from .naming import naming_of, to_original_key, unit_of
from .quantised import refuse_quantised
from .stated import HEADS_KEY, VACE_KEY, Stated, stated_by
from .strays import refuse_strays
from .values import ROPE_POSITIONS, WAN_EPS, Naming, WanGeometry
from .verify import verify_tensors

WAN_HEAD_DIM = 128
# Far above any model; keeps a forged file from making the list of expected tensors endless.
MAX_BLOCKS = 1024
# How the tensors end of what a block may have or not.
_QK_NORM = ("_attn.norm_q.weight", "_attn.norm_k.weight")
_CROSS_NORM = (".norm3.weight", ".norm3.bias")
_IMAGE_ATTENTION = tuple(
    f".cross_attn.{name}" for name in ("k_img.weight", "k_img.bias", "v_img.weight", "v_img.bias",
                                       "norm_k_img.weight")
)  # fmt: skip


def infer_geometry(checkpoint: Checkpoint) -> WanGeometry:
    """The geometry of a Wan transformer, from names and shapes.

    Heads are dim / 128 and VACE positions evenly spaced, unless the metadata (`wan.num_heads`,
    `wan.vace_layers`) or config.json says otherwise. Raises OtherModelError when it is another
    model, GeometryError when any tensor is missing, too many, or of another shape, and when what
    is stated is not what the tensors show.
    """
    check_family(checkpoint)
    if relative := relative_of(checkpoint.tensors):
        raise OtherModelError(
            f"{checkpoint.label} is {relative}, built on Wan with tensors of its own, and no "
            f"T2V, I2V, FLF2V, TI2V or VACE checkpoint: {what_opens(checkpoint.tensors)}"
        )
    return verify_tensors(checkpoint.label, _original(checkpoint), measured_geometry(checkpoint))


def measured_geometry(checkpoint: Checkpoint) -> WanGeometry:
    """The geometry of what a checkpoint has in common with Wan, whatever else it holds.

    Raises as `infer_geometry`, but not for tensors that are missing or too many.
    """
    naming = check_family(checkpoint)
    refuse_quantised(checkpoint.label, checkpoint.tensors)
    refuse_strays(checkpoint)
    stated = stated_by(checkpoint)
    geometry = _measure(checkpoint, _original(checkpoint), naming, stated)
    check_claims(checkpoint, geometry, stated)
    return geometry


def _original(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors by their original keys."""
    return {to_original_key(key): tensor for key, tensor in checkpoint.tensors.items()}


def check_family(checkpoint: Checkpoint) -> Naming:
    """In whose names a Wan transformer's tensors are. Raises OtherModelError for a stranger."""
    keys = checkpoint.tensors
    has_blocks = any((unit := unit_of(key)) and unit.kind == "block" for key in keys)
    naming = naming_of(keys)
    if has_blocks and naming is not None and "patch_embedding.weight" in keys:
        return naming
    label = checkpoint.label
    names = (*(tensor.name for tensor in keys.values()), *checkpoint.left_out)
    if what := stranger_of(names):
        raise OtherModelError(f"{label} is {what}: give the checkpoint of a Wan video transformer")
    if module := module_of(keys):
        how = "" if module == "Wan VACE" else f"; {what_opens(keys)}"
        raise OtherModelError(
            f"{label} is a module of {module} without the model that it goes onto: give both, "
            f"[the model's file, this one]{how}"
        )
    if not has_blocks:
        raise OtherModelError(
            f"{label} has no transformer blocks among its {len(names)} tensors: "
            "give the checkpoint of a Wan video transformer"
        )
    if naming is None:
        raise OtherModelError(
            f"{label} does not name its tensors as either Wan-Video or diffusers does, or mixes "
            "both: give a checkpoint in one naming"
        )
    raise OtherModelError(
        f"{label} lacks tensor 'patch_embedding.weight': "
        "give the whole checkpoint of a Wan video transformer"
    )


def module_of(keys: Collection[str]) -> str | None:
    """What a file is that goes onto a model and lacks it; None for any other."""
    if "patch_embedding.weight" in keys:
        return None
    blocks = any((unit := unit_of(key)) and unit.kind == "block" for key in keys)
    vace = not blocks and any(key.startswith("vace_") for key in keys)
    return relative_of(keys) or ("Wan VACE" if vace else None)


def _measure(
    checkpoint: Checkpoint, tensors: Mapping[str, StoredTensor], naming: Naming, stated: Stated
) -> WanGeometry:
    label = checkpoint.label
    dim, in_channels, *patch = _shape(label, tensors, "patch_embedding.weight", 5)
    patch_size = (patch[0], patch[1], patch[2])
    layers = _count(label, tensors, "blocks")
    image, added_kv = _image_parts(tensors, stated)
    position = tensors.get("img_emb.emb_pos")
    vace_layers = _vace_layers(checkpoint, tensors, (dim, layers), stated)
    return WanGeometry(
        naming=naming,
        dim=dim,
        ffn_dim=_shape(label, tensors, "blocks.0.ffn.0.weight", 2)[0],
        num_layers=layers,
        num_heads=_heads(label, dim, stated),
        in_channels=in_channels,
        out_channels=_out_channels(label, tensors, patch_size),
        text_dim=_shape(label, tensors, "text_embedding.0.weight", 2)[1],
        freq_dim=_shape(label, tensors, "time_embedding.0.weight", 2)[1],
        patch_size=patch_size,
        image_dim=_shape(label, tensors, "img_emb.proj.0.weight", 1)[0] if image else None,
        added_kv=added_kv,
        qk_norm=_any_of(tensors, _QK_NORM),
        cross_attn_norm=_any_of(tensors, _CROSS_NORM),
        vace_layers=vace_layers,
        vace_in_channels=_shape(label, tensors, "vace_patch_embedding.weight", 5)[1]
        if vace_layers
        else None,
        pos_embed_seq_len=None
        if position is None
        else _shape(label, tensors, "img_emb.emb_pos", 3)[1],
        eps=WAN_EPS if stated.eps is None else stated.eps,
        rope_max_seq_len=stated.rope_max_seq_len or ROPE_POSITIONS,
    )


def _any_of(tensors: Mapping[str, StoredTensor], ends: tuple[str, ...]) -> bool:
    """Whether any block has such a tensor: then all must, and the list of tensors says which."""
    return any(key.endswith(ends) and unit_of(key) for key in tensors)


def _image_parts(tensors: Mapping[str, StoredTensor], stated: Stated) -> tuple[bool, bool]:
    """(an image embedder, attention to it): each asks for the other unless it is stated not to."""
    embedder = any(key.startswith("img_emb.") for key in tensors)
    attention = _any_of(tensors, _IMAGE_ATTENTION)
    return (
        embedder or (attention and None not in stated.claimed("image_dim")),
        attention or (embedder and None not in stated.claimed("added_kv_proj_dim")),
    )


def _shape(
    label: str, tensors: Mapping[str, StoredTensor], name: str, rank: int
) -> tuple[int, ...]:
    tensor = tensors.get(name)
    if tensor is None:
        raise GeometryError(
            f"{label} lacks tensor {quote(name)}: give the whole checkpoint of a Wan transformer"
        )
    if len(tensor.shape) != rank or 0 in tensor.shape:
        raise GeometryError(
            f"{label}: {quote(tensor.name)} is {quote(list(tensor.shape))}, a Wan transformer "
            f"has {rank} axes there: the file is packed by a quantiser or is another model's"
        )
    return tensor.shape


def _count(label: str, tensors: Mapping[str, StoredTensor], stem: str) -> int:
    """How many blocks there are, contiguous from 0."""
    units = (unit_of(key) for key in tensors)
    indices = {u.index for u in units if u is not None and u.unit == f"{stem}.{u.index}"}
    if len(indices) > MAX_BLOCKS:
        raise GeometryError(
            f"{label} has {len(indices):,} {stem}, more than {MAX_BLOCKS:,}: "
            "it is no Wan transformer"
        )
    missing = set(range(len(indices))) - indices
    if missing:
        raise GeometryError(
            f"{label} has {len(indices)} {stem} up to {stem}.{max(indices)}, but "
            f"{stem}.{min(missing)} is missing: give the whole checkpoint"
        )
    return len(indices)


def _out_channels(
    label: str, tensors: Mapping[str, StoredTensor], patch_size: tuple[int, ...]
) -> int:
    rows, patch = _shape(label, tensors, "head.head.weight", 2)[0], math.prod(patch_size)
    if rows % patch:
        raise GeometryError(
            f"{label}: {quote(tensors['head.head.weight'].name)} has {rows} rows, no multiple of "
            f"the {patch} values of a patch: it is another model's"
        )
    return rows // patch


def _heads(label: str, dim: int, stated: Stated) -> int:
    heads, size = stated.num_heads, stated.head_dim
    if heads is None and size is None:
        if dim % WAN_HEAD_DIM:
            raise GeometryError(
                f"{label} is {dim} wide, no multiple of {WAN_HEAD_DIM}, and does not say how many "
                f"heads it has: put num_heads in a config.json or {HEADS_KEY} in the metadata"
            )
        return dim // WAN_HEAD_DIM
    if heads is None:
        heads = dim // size if size and dim % size == 0 else 0
    if size is not None and heads * size != dim:
        raise GeometryError(
            f"{label} states {f'{heads} heads of ' if heads else 'heads of '}{size}, but its "
            f"width is {dim}: correct attention_head_dim or the number of heads"
        )
    if dim % heads or dim // heads % 2:
        raise GeometryError(
            f"{label} states {heads} heads, but its width {dim} does not split into so many "
            "of even size: correct the config.json or the metadata"
        )
    return heads


def _vace_layers(
    checkpoint: Checkpoint,
    tensors: Mapping[str, StoredTensor],
    sizes: tuple[int, int],
    stated: Stated,
) -> tuple[int, ...]:
    """The positions of VACE blocks in a model of `sizes` (width, blocks)."""
    label, (dim, layers) = checkpoint.label, sizes
    if not any(key.startswith("vace_") for key in tensors):
        refuse_no_vace(checkpoint, stated)
        return ()
    count = _count(label, tensors, "vace_blocks")
    if count == 0:
        raise GeometryError(
            f"{label} has a vace_patch_embedding and no VACE blocks: give the whole checkpoint"
        )
    if stated.vace_layers is None:
        check_vace_count(checkpoint, dim, count)
        if layers % count:
            raise GeometryError(
                f"{label} has {count} VACE blocks for {layers} blocks, which are not evenly "
                f"spaced: put vace_layers in a config.json or {VACE_KEY} in the metadata"
            )
        return tuple(range(0, layers, layers // count))
    stated_layers = stated.vace_layers
    if (
        len(stated_layers) != count
        or sorted(set(stated_layers)) != list(stated_layers)
        or stated_layers[0] != 0
        or stated_layers[-1] >= layers
    ):
        raise GeometryError(
            f"{label} states VACE layers {quote(list(stated_layers))}, but has {count} VACE "
            f"blocks for blocks 0-{layers - 1}, the first at 0: correct the list"
        )
    return stated_layers
