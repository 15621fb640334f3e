"""The byte counts of a model, from a published name or from a file's headers; no weights needed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ArgsError
from ..layout.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from ..layout.dtypes import ITEM_BYTES
from ..layout.geometry import (
    WanGeometry,
    file_names,
    find_variant,
    infer_geometry,
    name_variant,
    to_diffusers_key,
    unit_of,
    units_in_order,
)
from ..layout.slab import pack
from ..layout.values import Leaf, ModelLayout, UnitLayout, contiguous_stride
from ..paths import is_there
from ..plan import UnitFacts
from ..store.file_slab import Extent, file_slab

PUBLISHED_DTYPE = "bfloat16"
_FLOATING = frozenset(name for name in ITEM_BYTES if "float" in name)


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """A Wan transformer in byte counts; units in execution order, under diffusers' names.

    `dtype` is what most of its bytes are in after a cast that was asked for, `stored` what they are
    in the file, `path` the file (both None for a published name). `layout` names the units for a
    selection; it has no tensors.
    """

    label: str
    geometry: WanGeometry
    dtype: str
    units: tuple[UnitFacts, ...]
    rest_bytes: int
    path: Path | None = None
    stored: str | None = None

    @property
    def layout(self) -> ModelLayout:
        units = []
        for unit in self.units:
            key = unit_of(f"{unit.name}.weight")
            assert key is not None, "units are named by their keys"
            units.append(UnitLayout(unit.name, unit.kind, key.index, ()))
        return ModelLayout(self.label, tuple(units), ())


def find_model(name: str, dtype: str | None = None) -> ModelFigures:
    """A model by the path of its file or folder, or by its published name.

    `dtype` is what it computes in; by default the file's own types, bfloat16 for a published name.
    Raises ArgsError for a name that is neither, CheckpointError or GeometryError for the file.
    """
    path = Path(name)
    if is_there(path):
        return figures_of_file(open_checkpoint(path), dtype, path)
    if name.endswith(".safetensors") or "/" in name or "\\" in name:
        raise ArgsError(f"{name} is not there: give a checkpoint's path or a published name")
    geometry = replace(find_variant(name), naming="diffusers")
    shapes = file_names(geometry)
    leaves = {key: _leaf(shape, dtype or PUBLISHED_DTYPE) for key, shape in shapes.items()}
    return _figures(name.strip().lower(), geometry, _Bytes(leaves))


def figures_of_file(checkpoint: Checkpoint, dtype: str | None, path: Path) -> ModelFigures:
    """The same for an opened checkpoint, with the exact sizes of what is read from it."""
    geometry = replace(infer_geometry(checkpoint), naming="diffusers")
    stored = {to_diffusers_key(tensor.key): tensor for tensor in checkpoint.tensors.values()}
    leaves = {
        key: _leaf(tensor.shape, _computed(tensor.dtype, dtype)) for key, tensor in stored.items()
    }
    label = name_variant(geometry) or checkpoint.label
    held = _main_dtype(_leaf(tensor.shape, tensor.dtype) for tensor in stored.values())
    return replace(_figures(label, geometry, _Bytes(leaves, stored)), path=path, stored=held)


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Every tensor as it computes, and as it is stored where there is a file."""

    leaves: Mapping[str, Leaf]
    stored: Mapping[str, StoredTensor] | None = None


def _figures(label: str, geometry: WanGeometry, tensors: _Bytes) -> ModelFigures:
    parts: dict[str, list[str]] = {}
    rest: list[str] = []
    for key in tensors.leaves:
        split = unit_of(key)
        (rest if split is None else parts.setdefault(split.unit, [])).append(key)
    units = tuple(_unit(name, parts[name], tensors) for name in units_in_order(tensors.leaves))
    # Cosines and sines, which diffusers' class keeps as buffers.
    tables = [_leaf((geometry.rope_max_seq_len, geometry.head_dim), "float32")] * 2
    return ModelFigures(
        label=label,
        geometry=geometry,
        dtype=_main_dtype(tensors.leaves.values()),
        units=units,
        rest_bytes=pack([*(tensors.leaves[key] for key in rest), *tables]).nbytes,
    )


def _unit(name: str, keys: list[str], tensors: _Bytes) -> UnitFacts:
    kind = unit_of(keys[0])
    assert kind is not None, "the keys of a unit name it"
    computed = [tensors.leaves[key] for key in keys]
    nbytes = pack(computed).nbytes
    disk, cast = nbytes, 0
    if tensors.stored is not None:
        stored = [tensors.stored[key] for key in keys]
        disk = file_slab([Extent(t.shard, t.offset, t.nbytes) for t in stored]).slab.nbytes
        changed = [leaf for leaf, t in zip(computed, stored, strict=True) if leaf.dtype != t.dtype]
        cast = pack(changed).nbytes
    return UnitFacts(name, kind.kind, nbytes, nbytes, disk, cast)


def _leaf(shape: tuple[int, ...], dtype: str) -> Leaf:
    return Leaf((), dtype, shape, contiguous_stride(shape))


def _computed(stored: str, asked: str | None) -> str:
    return asked if asked is not None and stored in _FLOATING else stored


def _main_dtype(leaves: Iterable[Leaf]) -> str:
    totals: dict[str, int] = {}
    for leaf in leaves:
        totals[leaf.dtype] = totals.get(leaf.dtype, 0) + leaf.nbytes
    return max(totals, key=totals.__getitem__)
