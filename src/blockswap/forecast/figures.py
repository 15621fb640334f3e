"""The byte counts of a model, from a published name or from a file's headers; no weights needed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..decode.formats import packed_form
from ..decode.unit_decoding import LeafForm, UnitDecoding, plain_form
from ..errors import ArgsError
from ..layout.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from ..layout.dtypes import ITEM_BYTES
from ..layout.formats import unpacked
from ..layout.formats.main_dtype import HALVES, is_quantised, keeps_dtype, main_dtype
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
    checkpoint = unpacked(checkpoint)
    geometry = replace(infer_geometry(checkpoint), naming="diffusers")
    quantised = any(map(is_quantised, checkpoint.tensors.values()))
    main = main_dtype(checkpoint.tensors.values()) if quantised else None
    stored = {to_diffusers_key(tensor.key): tensor for tensor in checkpoint.tensors.values()}
    leaves = {
        key: _leaf(tensor.shape, _computed(key, tensor, dtype, main))
        for key, tensor in stored.items()
    }
    label = name_variant(geometry) or checkpoint.label
    held = _held(stored.values())
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
    facts = UnitFacts(name, kind.kind, nbytes, nbytes, nbytes)
    if tensors.stored is None:
        return facts
    stored = [tensors.stored[key] for key in keys]
    parts = [part for t in stored for part in ([t] if t.packing is None else t.packing.parts)]
    decoding = UnitDecoding(tuple(map(_form, stored, computed)))
    facts = replace(
        facts,
        disk_slab_bytes=file_slab([Extent(t.shard, t.offset, t.nbytes) for t in parts]).slab.nbytes,
        decode_bytes=decoding.buffer_bytes,
        decode_moved_bytes=decoding.cost.moved_bytes,
    )
    if not decoding.rests_stored:
        return facts
    ram = pack(decoding.stored).nbytes
    return replace(facts, ram_slab_bytes=ram, ram_decode_bytes=decoding.buffer_bytes)


def _form(stored: StoredTensor, computed: Leaf) -> LeafForm:
    if stored.packing is not None:
        return packed_form(stored.packing, computed)
    return plain_form(_leaf(stored.shape, stored.dtype), computed)


def _leaf(shape: tuple[int, ...], dtype: str) -> Leaf:
    return Leaf((), dtype, shape, contiguous_stride(shape))


def _computed(key: str, stored: StoredTensor, asked: str | None, main: str | None) -> str:
    """What a tensor computes in: as asked, else as stored.

    In a quantised file, of which `main` is the dtype, it is as `open_transformer` has it.
    """
    if asked is not None and (is_quantised(stored) or stored.dtype in _FLOATING):
        return asked
    if main is None or asked is not None:
        return stored.dtype
    if not keeps_dtype(key):
        return main
    kept = stored.dtype in HALVES and unit_of(key) is not None
    return stored.dtype if kept else "float32"


def _held(stored: Iterable[StoredTensor]) -> str:
    """The format, or dtype, that most bytes of a file are in."""
    totals: dict[str, int] = {}
    for tensor in stored:
        name = tensor.packing.format if tensor.packing else tensor.dtype
        totals[name] = totals.get(name, 0) + tensor.nbytes
    return max(totals, key=totals.__getitem__)


def _main_dtype(leaves: Iterable[Leaf]) -> str:
    totals: dict[str, int] = {}
    for leaf in leaves:
        totals[leaf.dtype] = totals.get(leaf.dtype, 0) + leaf.nbytes
    return max(totals, key=totals.__getitem__)
