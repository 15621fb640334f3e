"""What a checkpoint says of itself: this module owns reading metadata and config.json as claims.

Head count and VACE positions cannot be seen in shapes; everything else that is stated is a claim
that the shapes must bear out. Official files state nothing and need nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import GeometryError
from ..checkpoint import Checkpoint
from ..quoting import quote
from .values import WanGeometry

HEADS_KEY = "wan.num_heads"
VACE_KEY = "wan.vace_layers"
LAYERS_KEY = "wan.num_layers"
# Blocks of every published model by its width: a file of fewer was cut off at a block's end.
KNOWN_LAYERS = {5120: 40, 3072: 30, 1536: 30}
_COUNT = re.compile(r"[1-9][0-9]{0,5}")
_COUNTS = re.compile(r"[0-9]{1,6}(,[0-9]{1,6})*")
# field of WanGeometry -> its names in a vendor's or diffusers' config.json
_CLAIMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("dim", ("dim",)),
    ("ffn_dim", ("ffn_dim",)),
    ("num_layers", ("num_layers",)),
    ("in_channels", ("in_dim", "in_channels")),
    ("out_channels", ("out_dim", "out_channels")),
)
_DIFFUSERS_CLASSES = ("WanTransformer3DModel", "WanVACETransformer3DModel")
# The vendors' own configs name their class, too.
_CLASSES = (*_DIFFUSERS_CLASSES, "WanModel", "VaceWanModel")


@dataclass(frozen=True, slots=True)
class Stated:
    """What shapes cannot show, where the checkpoint says it; None where it does not."""

    num_heads: int | None = None
    vace_layers: tuple[int, ...] | None = None
    eps: float | None = None


def stated_by(checkpoint: Checkpoint) -> Stated:
    """Reads metadata and config. Raises GeometryError where they are malformed or disagree."""
    config = checkpoint.config or {}
    label, metadata = checkpoint.label, checkpoint.metadata
    heads = _agreed(label, "heads", _metadata_heads(label, metadata), _config_heads(label, config))
    layers = _agreed(
        label, "VACE layers", _metadata_layers(label, metadata), _config_layers(label, config)
    )
    eps = config.get("eps")
    if eps is not None and not (isinstance(eps, float) and 0 < eps < 1):
        raise _malformed(label, "eps", eps, "a small positive number")
    return Stated(heads, layers, eps)


def check_claims(checkpoint: Checkpoint, geometry: WanGeometry) -> None:
    """Raises GeometryError where config.json states sizes that the tensors do not have."""
    config = checkpoint.config or {}
    _check_class(checkpoint.label, config)
    _check_layers(checkpoint, geometry)
    for field, names in _CLAIMS:
        true = getattr(geometry, field)
        # diffusers writes null for "as the input". Where a config has both spellings, the one
        # that its class does not read may be a default that means nothing.
        claims = {name: config[name] for name in names if config.get(name) is not None}
        if claims and true not in claims.values():
            name, claim = next(iter(claims.items()))
            raise GeometryError(
                f"{checkpoint.label}: config.json says {name} = {quote(claim)}, the tensors "
                f"have {true}: the config belongs to another model, remove or replace it"
            )


def _check_layers(checkpoint: Checkpoint, geometry: WanGeometry) -> None:
    """Refuses a file whose last blocks are not there, where metadata or its width tells."""
    layers, known = geometry.num_layers, KNOWN_LAYERS.get(geometry.dim, 0)
    stated = checkpoint.metadata.get(LAYERS_KEY)
    if stated is not None and stated != str(layers):
        raise GeometryError(
            f"{checkpoint.label} states {LAYERS_KEY} = {quote(stated)} in its metadata and has "
            f"{layers} blocks: give the whole checkpoint, or correct the metadata"
        )
    told = stated is not None or (checkpoint.config or {}).get("num_layers") is not None
    if layers < known and checkpoint.headers and not told:
        raise GeometryError(
            f"{checkpoint.label} ends at block {layers - 1}, and every published model "
            f"{geometry.dim} wide has {known} blocks: give the whole checkpoint, or put "
            f"num_layers in a config.json or {LAYERS_KEY} in the metadata if it is meant so"
        )


def _check_class(label: str, config: Mapping[str, Any]) -> None:
    name = config.get("_class_name")
    if name is not None and name not in _CLASSES:
        raise GeometryError(
            f"{label}: config.json says that the model is a {quote(name)}, and blockswap opens "
            f"{' and '.join(_DIFFUSERS_CLASSES)}: its forward differs, use the host that it is for"
        )


def _agreed(label: str, what: str, metadata: Any, config: Any) -> Any:
    if metadata is not None and config is not None and metadata != config:
        raise GeometryError(
            f"{label}: the file's metadata says {what} = {metadata}, config.json {config}: "
            "remove the one that is wrong"
        )
    return config if metadata is None else metadata


def _metadata_heads(label: str, metadata: Mapping[str, str]) -> int | None:
    text = metadata.get(HEADS_KEY)
    if text is None:
        return None
    if not _COUNT.fullmatch(text):
        raise _malformed(label, HEADS_KEY, text, "a number of heads")
    return int(text)


def _metadata_layers(label: str, metadata: Mapping[str, str]) -> tuple[int, ...] | None:
    text = metadata.get(VACE_KEY)
    if text is None:
        return None
    if not _COUNTS.fullmatch(text):
        raise _malformed(label, VACE_KEY, text, "a list of layers such as 0,5,10")
    return tuple(int(part) for part in text.split(","))


def _config_heads(label: str, config: Mapping[str, Any]) -> int | None:
    for name in ("num_heads", "num_attention_heads"):
        value = config.get(name)
        if value is not None:
            if type(value) is not int or value < 1:
                raise _malformed(label, name, value, "a number of heads")
            return value
    return None


def _config_layers(label: str, config: Mapping[str, Any]) -> tuple[int, ...] | None:
    value = config.get("vace_layers")
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise _malformed(label, "vace_layers", value, "a list of layers such as [0, 5, 10]")
    return tuple(value)


def _malformed(label: str, key: str, value: object, wanted: str) -> GeometryError:
    return GeometryError(
        f"{label} states {key} = {quote(value)}, which is not {wanted}: correct it or remove it"
    )
