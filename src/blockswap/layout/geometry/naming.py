"""Names: this module owns the two spellings of a Wan model and which unit a key belongs to.

The spellings differ by a pure rename of module paths, one table for the model and one for the
inside of a block, so that a block of an original file can be streamed into a diffusers module.
What follows the module path (`weight`, `bias`, `scale_weight`) is kept as it is, and so is every
key whose path is in neither table: both functions return a key of the target spelling unchanged.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..values import UnitKind
from .values import Naming

_EMBEDDER = "condition_embedder"

# (original, diffusers) module paths outside the blocks
_MODEL_PATHS = (
    ("time_embedding.0", f"{_EMBEDDER}.time_embedder.linear_1"),
    ("time_embedding.2", f"{_EMBEDDER}.time_embedder.linear_2"),
    ("text_embedding.0", f"{_EMBEDDER}.text_embedder.linear_1"),
    ("text_embedding.2", f"{_EMBEDDER}.text_embedder.linear_2"),
    ("time_projection.1", f"{_EMBEDDER}.time_proj"),
    ("head.modulation", "scale_shift_table"),
    ("head.head", "proj_out"),
    ("img_emb.proj.0", f"{_EMBEDDER}.image_embedder.norm1"),
    ("img_emb.proj.1", f"{_EMBEDDER}.image_embedder.ff.net.0.proj"),
    ("img_emb.proj.3", f"{_EMBEDDER}.image_embedder.ff.net.2"),
    ("img_emb.proj.4", f"{_EMBEDDER}.image_embedder.norm2"),
    ("img_emb.emb_pos", f"{_EMBEDDER}.image_embedder.pos_embed"),
)
# (original, diffusers) module paths inside a block
_BLOCK_PATHS = (
    ("modulation", "scale_shift_table"),
    *(
        (f"{original}.{old}", f"{diffusers}.{new}")
        for original, diffusers in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for old, new in (
            ("q", "to_q"),
            ("k", "to_k"),
            ("v", "to_v"),
            ("o", "to_out.0"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
            ("k_img", "add_k_proj"),
            ("v_img", "add_v_proj"),
            ("norm_k_img", "norm_added_k"),
        )
    ),
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("before_proj", "proj_in"),
    ("after_proj", "proj_out"),
)

_INDEXED = re.compile(r"(?P<list>vace_blocks|blocks)\.(?P<index>0|[1-9][0-9]{0,5})\.(?P<rest>.+)")
_EMBEDDERS: tuple[tuple[str, UnitKind], ...] = (
    ("text_embedding", "text_embedder"),
    ("img_emb", "image_embedder"),
    (f"{_EMBEDDER}.text_embedder", "text_embedder"),
    (f"{_EMBEDDER}.image_embedder", "image_embedder"),
)
# Embedders run first; VACE blocks all run before the first block, in both vendors' models.
_EXECUTION: tuple[UnitKind, ...] = ("text_embedder", "image_embedder", "vace", "block")

_Table = Mapping[str, str]
_TO_DIFFUSERS: tuple[_Table, _Table] = (
    MappingProxyType(dict(_MODEL_PATHS)),
    MappingProxyType(dict(_BLOCK_PATHS)),
)
_TO_ORIGINAL: tuple[_Table, _Table] = (
    MappingProxyType({new: old for old, new in _MODEL_PATHS}),
    MappingProxyType({new: old for old, new in _BLOCK_PATHS}),
)


@dataclass(frozen=True, slots=True)
class UnitKey:
    """A key in two parts: `unit` is where the unit hangs ("blocks.3"), `rest` the name in it."""

    unit: str
    kind: UnitKind
    index: int
    rest: str


def unit_of(key: str) -> UnitKey | None:
    """Which streamable unit a key of either spelling belongs to; None for the rest of the model."""
    if match := _INDEXED.fullmatch(key):
        kind: UnitKind = "block" if match["list"] == "blocks" else "vace"
        index = int(match["index"])
        return UnitKey(f"{match['list']}.{index}", kind, index, match["rest"])
    for unit, embedder in _EMBEDDERS:
        if key.startswith(f"{unit}."):
            return UnitKey(unit, embedder, 0, key[len(unit) + 1 :])
    return None


def execution_rank(unit: UnitKey) -> tuple[int, int]:
    """Sorts units in the order in which a forward runs them."""
    return _EXECUTION.index(unit.kind), unit.index


def units_in_order(keys: Iterable[str]) -> tuple[str, ...]:
    """The names of the units that the keys belong to, each once, in execution order."""
    units = {split.unit: execution_rank(split) for key in keys if (split := unit_of(key))}
    return tuple(sorted(units, key=units.__getitem__))


def to_diffusers_key(key: str) -> str:
    """The diffusers spelling of an original key; other keys come back unchanged."""
    return _renamed(key, _TO_DIFFUSERS)


def to_original_key(key: str) -> str:
    """The original spelling of a diffusers key; other keys come back unchanged."""
    return _renamed(key, _TO_ORIGINAL)


def naming_of(keys: Iterable[str]) -> Naming | None:
    """The spelling that the keys are in; None when none of them tells, or when they are mixed."""
    original = diffusers = False
    for key in keys:
        original |= to_diffusers_key(key) != key
        diffusers |= to_original_key(key) != key
    if original == diffusers:
        return None
    return "original" if original else "diffusers"


def _renamed(key: str, tables: tuple[_Table, _Table]) -> str:
    model, block = tables
    if match := _INDEXED.fullmatch(key):
        start = match.start("rest")
        return key[:start] + _moved(key[start:], block)
    return _moved(key, model)


def _moved(path: str, table: _Table) -> str:
    """`path` with the longest of its leading module paths that the table knows replaced."""
    head, tail = path, ""
    while head:
        if head in table:
            return table[head] + tail
        head, dot, last = head.rpartition(".")
        tail = dot + last + tail
    return path
