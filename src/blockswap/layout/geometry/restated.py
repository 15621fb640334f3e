"""Restating: this module owns what a file of its own must say in its metadata to be read back.

A config.json does not travel with a file. What the tensors do not show, and what they would be
refused for without a word, goes into the metadata, where `stated` finds it again.
"""

from .claims import KNOWN_LAYERS
from .stated import EPS_KEY, HEADS_KEY, LAYERS_KEY, PREFIX, ROPE_KEY, VACE_KEY, Stated
from .values import ROPE_POSITIONS, WAN_EPS, WanGeometry


def all_statements(geometry: WanGeometry) -> dict[str, str]:
    """Metadata from which any geometry can be read back."""
    said = {HEADS_KEY: str(geometry.num_heads), **_unusual(geometry)}
    if geometry.vace_layers:
        said[VACE_KEY] = _listed(geometry.vace_layers)
    return said


def needed_statements(geometry: WanGeometry, stated: Stated) -> dict[str, str]:
    """Metadata without which a reader would take another geometry than that of a file that
    states `stated`, or would refuse it."""
    said = _unusual(geometry)
    if stated.says_heads:
        said[HEADS_KEY] = str(geometry.num_heads)
    if stated.vace_layers:
        said[VACE_KEY] = _listed(geometry.vace_layers)
    return said


def _unusual(geometry: WanGeometry) -> dict[str, str]:
    """What is not as in every published model."""
    said: dict[str, str] = {}
    published = geometry.dim in KNOWN_LAYERS
    if geometry.num_layers < KNOWN_LAYERS.get(geometry.dim, 0):
        said[LAYERS_KEY] = str(geometry.num_layers)
    if geometry.eps != WAN_EPS:
        said[EPS_KEY] = repr(geometry.eps)
    if geometry.rope_max_seq_len != ROPE_POSITIONS:
        said[ROPE_KEY] = str(geometry.rope_max_seq_len)
    for field in ("cross_attn_norm", "qk_norm"):
        if published and not getattr(geometry, field):
            said[PREFIX + field] = "false"
    if geometry.image_dim is None and geometry.added_kv:
        said[PREFIX + "image_dim"] = "none"
    if geometry.image_dim is not None and not geometry.added_kv:
        said[PREFIX + "added_kv_proj_dim"] = "none"
    return said


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
