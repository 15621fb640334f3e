"""Claims: this module owns comparing what a checkpoint says of itself with what its tensors show.

A figure that is stated and not borne out is refused, whichever it is: the statement belongs to
another model, or tensors are missing. So is a file that lacks, as a whole, what every published
model of its width has, unless it says so.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ...errors import GeometryError
from ..checkpoint import Checkpoint
from ..quoting import quote
from .stated import LAYERS_KEY, PREFIX, Stated
from .values import WanGeometry

# Blocks of every published model by its width: a file of fewer was cut off at a block's end.
KNOWN_LAYERS = {5120: 40, 3072: 30, 1536: 30}
# The same of VACE blocks.
KNOWN_VACE = {5120: 8, 1536: 15}
_DIFFUSERS_CLASSES = ("WanTransformer3DModel", "WanVACETransformer3DModel")
_VACE_CLASSES = ("WanVACETransformer3DModel", "VaceWanModel")
# The vendors' own configs name their class, too.
_CLASSES = (*_DIFFUSERS_CLASSES, "WanModel", "VaceWanModel")
_MODEL_TYPES = ("t2v", "i2v", "ti2v", "flf2v", "vace")
# Names of one figure; one of two spellings may be a default that the config's class does not read.
_SPELLINGS: tuple[tuple[str, ...], ...] = (
    ("dim",),
    ("ffn_dim",),
    ("num_layers",),
    ("in_dim", "in_channels"),
    ("out_dim", "out_channels"),
    ("text_dim",),
    ("freq_dim",),
    ("patch_size",),
    ("image_dim",),
    ("added_kv_proj_dim",),
    ("pos_embed_seq_len",),
    ("cross_attn_norm",),
    ("qk_norm",),
    ("vace_in_channels", "vace_in_dim"),
)
# Where null says that there is none. Elsewhere it says nothing: diffusers writes it for "as the
# input", and its class ignores qk_norm.
_NULL_IS_NONE = frozenset({"image_dim", "added_kv_proj_dim", "pos_embed_seq_len"})
# How a config writes that queries and keys have norms.
_QK_NORMS: Mapping[object, bool] = MappingProxyType(
    {True: True, False: False, "rms_norm_across_heads": True}
)
# (field, its name in words, what its tensors are called): what every published model has.
_NORMS = (
    ("cross_attn_norm", "norm before cross attention", "norm3"),
    ("qk_norm", "norm of queries and keys", "norm_q and norm_k"),
)


def check_claims(checkpoint: Checkpoint, geometry: WanGeometry, stated: Stated) -> None:
    """Raises GeometryError where config.json or metadata states what the tensors do not have."""
    _check_class(checkpoint, geometry)
    _check_layers(checkpoint, geometry, stated)
    shown = _shown(geometry)
    for names in _SPELLINGS:
        for source in ("config.json", "the metadata"):
            _check_figure(checkpoint, source, names, (stated, shown))
    _check_norms(checkpoint, geometry, stated)


def check_vace_count(checkpoint: Checkpoint, dim: int, count: int) -> None:
    """Refuses a file whose last VACE blocks are not there and whose positions nothing states."""
    known = KNOWN_VACE.get(dim, count)
    if count != known and checkpoint.headers:
        raise GeometryError(
            f"{checkpoint.label} has {count} VACE blocks, and every published model {dim} wide "
            f"has {known}: give the whole checkpoint, or put vace_layers in a config.json or "
            f"{PREFIX}vace_layers in the metadata if it is meant so"
        )


def refuse_no_vace(checkpoint: Checkpoint, stated: Stated) -> None:
    """Refuses a file without VACE tensors that is said to be a VACE model."""
    config = checkpoint.config or {}
    said = None
    if stated.vace_layers:
        said = f"VACE layers {quote(list(stated.vace_layers))}"
    elif config.get("_class_name") in _VACE_CLASSES:
        said = f"the class {config['_class_name']}"
    elif config.get("model_type") == "vace":
        said = "model_type = 'vace'"
    if said is not None:
        raise GeometryError(
            f"{checkpoint.label} states {said} and has no VACE blocks: give the whole checkpoint, "
            "or correct the config.json or the metadata"
        )


def _shown(geometry: WanGeometry) -> dict[str, Any]:
    """What the tensors show, by the names that configs have for it."""
    return {
        "dim": geometry.dim,
        "ffn_dim": geometry.ffn_dim,
        "num_layers": geometry.num_layers,
        "in_dim": geometry.in_channels,
        "in_channels": geometry.in_channels,
        "out_dim": geometry.out_channels,
        "out_channels": geometry.out_channels,
        "text_dim": geometry.text_dim,
        "freq_dim": geometry.freq_dim,
        "patch_size": list(geometry.patch_size),
        "image_dim": geometry.image_dim,
        "added_kv_proj_dim": geometry.dim if geometry.added_kv else None,
        "pos_embed_seq_len": geometry.pos_embed_seq_len,
        "cross_attn_norm": geometry.cross_attn_norm,
        "qk_norm": geometry.qk_norm,
        "vace_in_channels": geometry.vace_in_channels,
        "vace_in_dim": geometry.vace_in_channels,
    }


def _check_figure(
    checkpoint: Checkpoint,
    source: str,
    names: tuple[str, ...],
    facts: tuple[Stated, Mapping[str, Any]],
) -> None:
    label, (stated, shown) = checkpoint.label, facts
    claims = {
        name: value
        for (where, name), value in (stated.claims or {}).items()
        if where == source and name in names and (value is not None or name in _NULL_IS_NONE)
    }
    true = shown[names[0]]
    if not claims or any(_agrees(name, claim, true) for name, claim in claims.items()):
        return
    name, claim = next(iter(claims.items()))
    has = "none" if true is None or true is False else "it" if true is True else true
    if source == "config.json":
        raise GeometryError(
            f"{label}: config.json says {name} = {quote(claim)}, the tensors have {has}: "
            "the config belongs to another model, or tensors are missing: remove or replace it, "
            "or give the whole checkpoint"
        )
    said = quote(checkpoint.metadata[PREFIX + name])
    raise GeometryError(
        f"{label} states {PREFIX}{name} = {said} in its metadata, the tensors have {has}: "
        "give the whole checkpoint, or correct the metadata"
    )


def _agrees(name: str, claim: Any, true: Any) -> bool:
    if name == "qk_norm":
        known = isinstance(claim, (bool, str))
        return known and _QK_NORMS.get(claim) == true
    if isinstance(claim, bool) != isinstance(true, bool):
        return False  # to Python True is 1
    # A file's JSON has lists where a live model's config has tuples.
    listed = [list(each) if isinstance(each, tuple) else each for each in (claim, true)]
    return bool(listed[0] == listed[1])


def _check_class(checkpoint: Checkpoint, geometry: WanGeometry) -> None:
    config, label = checkpoint.config or {}, checkpoint.label
    name, kind = config.get("_class_name"), config.get("model_type")
    if name is not None and name not in _CLASSES:
        raise GeometryError(
            f"{label}: config.json says that the model is a {quote(name)}, and blockswap opens "
            f"{' and '.join(_DIFFUSERS_CLASSES)}: its forward differs, use the host that it is for"
        )
    if kind is not None and kind not in _MODEL_TYPES:
        raise GeometryError(
            f"{label}: config.json says model_type = {quote(kind)}, and blockswap opens "
            f"{', '.join(_MODEL_TYPES)}: its forward differs, use the host that it is for"
        )
    if not geometry.vace_layers:
        return
    if name is not None and name not in _VACE_CLASSES and kind != "vace":
        raise GeometryError(
            f"{label}: config.json says that the model is a {quote(name)}, and the file has "
            f"{geometry.num_vace_blocks} VACE blocks, which that class has not: correct the config"
        )


def _check_layers(checkpoint: Checkpoint, geometry: WanGeometry, stated: Stated) -> None:
    """Refuses a file whose last blocks are not there, where nothing says how many it has."""
    layers, known = geometry.num_layers, KNOWN_LAYERS.get(geometry.dim, 0)
    told = any(value is not None for value in stated.claimed("num_layers"))
    if layers < known and checkpoint.headers and not told:
        raise GeometryError(
            f"{checkpoint.label} ends at block {layers - 1}, and every published model "
            f"{geometry.dim} wide has {known} blocks: give the whole checkpoint, or put "
            f"num_layers in a config.json or {LAYERS_KEY} in the metadata if it is meant so"
        )


def _check_norms(checkpoint: Checkpoint, geometry: WanGeometry, stated: Stated) -> None:
    """Norms that are missing in every block leave a model that would compute, and wrongly."""
    config = checkpoint.config or {}
    published = geometry.dim in KNOWN_LAYERS and bool(checkpoint.headers)
    if not published and config.get("_class_name") is None:
        return
    for field, words, tensors in _NORMS:
        if getattr(geometry, field) or False in stated.claimed(field):
            continue
        who = f"every published model {geometry.dim} wide" if published else "its class"
        raise GeometryError(
            f"{checkpoint.label} lacks the {words} ({tensors}) of every block, which {who} has: "
            f"give the whole checkpoint, or put {field} = false in a config.json or "
            f"{PREFIX}{field} in the metadata if it is meant so"
        )
