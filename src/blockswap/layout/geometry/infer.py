"""Inference: this module owns reading a Wan transformer's geometry off the tensors of a checkpoint.

Sizes are taken from a handful of tensors; then the complete list of names and shapes that such a
model has is compared with what the checkpoint holds, so that nothing else has to check again.
"""

import math
from collections.abc import Mapping

from ...errors import GeometryError
from ..checkpoint import Checkpoint, StoredTensor
from ..quoting import quote
from .families import relative_of, stranger_of
from .naming import naming_of, to_original_key, unit_of
from .quantised import refuse_quantised
from .stated import HEADS_KEY, VACE_KEY, Stated, check_claims, stated_by
from .values import WAN_EPS, Naming, WanGeometry
from .verify import verify_tensors

WAN_HEAD_DIM = 128
# Far above any model; keeps a forged file from making the list of expected tensors endless.
MAX_BLOCKS = 1024


def infer_geometry(checkpoint: Checkpoint) -> WanGeometry:
    """The geometry of a Wan transformer, from names and shapes.

    Heads are dim / 128 and VACE positions evenly spaced, unless the metadata (`wan.num_heads`,
    `wan.vace_layers`) or config.json says otherwise. Raises GeometryError when it is another
    model, or when any tensor is missing, too many, or of another shape.
    """
    naming = check_family(checkpoint)
    tensors = {to_original_key(key): tensor for key, tensor in checkpoint.tensors.items()}
    if relative := relative_of(checkpoint.tensors):
        raise GeometryError(
            f"{checkpoint.label} is {relative}, built on Wan with tensors of its own: "
            "blockswap opens T2V, I2V, FLF2V, TI2V and VACE checkpoints"
        )
    refuse_quantised(checkpoint.label, checkpoint.tensors)
    geometry = _measure(checkpoint, tensors, naming)
    check_claims(checkpoint, geometry)
    return verify_tensors(checkpoint.label, tensors, geometry)


def check_family(checkpoint: Checkpoint) -> Naming:
    """In whose names a Wan transformer's tensors are. Raises GeometryError for a stranger."""
    keys = checkpoint.tensors
    has_blocks = any((unit := unit_of(key)) and unit.kind == "block" for key in keys)
    naming = naming_of(keys)
    if has_blocks and naming is not None and "patch_embedding.weight" in keys:
        return naming
    label = checkpoint.label
    names = (*(tensor.name for tensor in keys.values()), *checkpoint.left_out)
    if what := stranger_of(names):
        raise GeometryError(f"{label} is {what}: give the checkpoint of a Wan video transformer")
    module = relative_of(keys)
    if module is None and not has_blocks and any(key.startswith("vace_") for key in keys):
        module = "Wan VACE"
    if module is not None and "patch_embedding.weight" not in keys:
        raise GeometryError(
            f"{label} is a module of {module} without the model that it goes onto: "
            "blockswap opens whole T2V, I2V, FLF2V, TI2V and VACE checkpoints"
        )
    if not has_blocks:
        raise GeometryError(
            f"{label} has no transformer blocks among its {len(names)} tensors: "
            "give the checkpoint of a Wan video transformer"
        )
    if naming is None:
        raise GeometryError(
            f"{label} does not name its tensors as either Wan-Video or diffusers does, or mixes "
            "both: give a checkpoint in one naming"
        )
    raise GeometryError(
        f"{label} lacks tensor 'patch_embedding.weight': "
        "give the whole checkpoint of a Wan video transformer"
    )


def _measure(
    checkpoint: Checkpoint, tensors: Mapping[str, StoredTensor], naming: Naming
) -> WanGeometry:
    label, stated = checkpoint.label, stated_by(checkpoint)
    dim, in_channels, *patch = _shape(label, tensors, "patch_embedding.weight", 5)
    patch_size = (patch[0], patch[1], patch[2])
    layers = _count(label, tensors, "blocks")
    image = tensors.get("img_emb.proj.0.weight")
    position = tensors.get("img_emb.emb_pos")
    vace = tensors.get("vace_patch_embedding.weight")
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
        image_dim=None if image is None else _shape(label, tensors, "img_emb.proj.0.weight", 1)[0],
        added_kv="blocks.0.cross_attn.k_img.weight" in tensors,
        qk_norm="blocks.0.self_attn.norm_q.weight" in tensors,
        cross_attn_norm="blocks.0.norm3.weight" in tensors,
        vace_layers=_vace_layers(label, layers, _count(label, tensors, "vace_blocks"), stated),
        vace_in_channels=None
        if vace is None
        else _shape(label, tensors, "vace_patch_embedding.weight", 5)[1],
        pos_embed_seq_len=None
        if position is None
        else _shape(label, tensors, "img_emb.emb_pos", 3)[1],
        eps=WAN_EPS if stated.eps is None else stated.eps,
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
    heads = stated.num_heads
    if heads is None:
        if dim % WAN_HEAD_DIM:
            raise GeometryError(
                f"{label} is {dim} wide, no multiple of {WAN_HEAD_DIM}, and does not say how many "
                f"heads it has: put num_heads in a config.json or {HEADS_KEY} in the metadata"
            )
        return dim // WAN_HEAD_DIM
    if dim % heads or dim // heads % 2:
        raise GeometryError(
            f"{label} states {heads} heads, but its width {dim} does not split into so many "
            "of even size: correct the config.json or the metadata"
        )
    return heads


def _vace_layers(label: str, layers: int, count: int, stated: Stated) -> tuple[int, ...]:
    if count == 0:
        return ()
    if stated.vace_layers is None:
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
