"""The byte counts of a Wan model, from a published name or a file's headers; no weights needed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..layout.checkpoint import Checkpoint, StoredTensor
from ..layout.formats import unpacked
from ..layout.formats.main_dtype import (
    computed_dtype,
    keeps_dtype,
    main_dtype,
    refuse_whole_numbers,
)
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
from ..lora.file import LoraFile
from ..lora.fit import Fitted, fit
from ..plan import UnitFacts
from ..predict.subject import Subject, WanSubject
from .tensor_bytes import TensorBytes
from .unit_bytes import facts_of_unit

PUBLISHED_DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """A transformer in byte counts; units in execution order, under diffusers' names.

    `dtype` is what most of its bytes are in after a cast that was asked for, `stored` what they are
    in the file, `path` the file (both None for a published name). `loaded_units` are the same units
    of the model in host memory, where they rest as they compute, LoRAs behind them. `layout` names
    the units for a selection; it has no tensors. `notes`: what its plan says of its LoRAs.
    """

    label: str
    subject: Subject
    layout: ModelLayout
    dtype: str
    units: tuple[UnitFacts, ...]
    rest_bytes: int
    loaded_units: tuple[UnitFacts, ...]
    path: Path | None = None
    stored: str | None = None
    notes: tuple[str, ...] = ()


def figures_of_variant(
    name: str, dtype: str | None = None, loras: Sequence[LoraFile] = ()
) -> ModelFigures:
    """One of Wan's models by its published name. Raises ArgsError."""
    geometry = replace(find_variant(name), naming="diffusers")
    shapes = file_names(geometry)
    held = dtype or PUBLISHED_DTYPE
    leaves = {
        key: _leaf(shape, _computed(key, _as_stored(key, shape, held), None, held))
        for key, shape in shapes.items()
    }
    label = name.strip().lower()
    fitted = _fitted(loras, leaves, label)
    return _figures(label, geometry, TensorBytes(_widened(leaves, fitted), fitted=fitted))


def figures_of_file(
    checkpoint: Checkpoint, dtype: str | None, path: Path, loras: Sequence[LoraFile] = ()
) -> ModelFigures:
    """The same for an opened checkpoint, with the exact sizes of what is read from it."""
    checkpoint = unpacked(checkpoint)
    geometry = replace(infer_geometry(checkpoint), naming="diffusers")
    main = main_dtype(checkpoint.tensors.values())
    for tensor in checkpoint.tensors.values():
        refuse_whole_numbers(checkpoint.label, tensor)
    stored = {to_diffusers_key(tensor.key): tensor for tensor in checkpoint.tensors.values()}
    leaves = {
        key: _leaf(tensor.shape, _computed(key, tensor, dtype, main))
        for key, tensor in stored.items()
    }
    label = name_variant(geometry) or checkpoint.label
    held = _held(stored.values())
    fitted = _fitted(loras, leaves, label)
    files = len(checkpoint.headers)
    tensors = TensorBytes(_widened(leaves, fitted), stored, files, fitted)
    return replace(_figures(label, geometry, tensors), path=path, stored=held)


def _fitted(loras: Sequence[LoraFile], leaves: Mapping[str, Leaf], label: str) -> Fitted | None:
    shapes = {key: leaf.shape for key, leaf in leaves.items()}
    return fit(loras, shapes, label) if loras else None


def _widened(leaves: Mapping[str, Leaf], fitted: Fitted | None) -> Mapping[str, Leaf]:
    """What is kept in fp32 computes so once a LoRA is in it, as `open_transformer` has it."""
    changed = () if fitted is None else filter(keeps_dtype, fitted.changes)
    return {**leaves, **{key: replace(leaves[key], dtype="float32") for key in changed}}


def _figures(label: str, geometry: WanGeometry, tensors: TensorBytes) -> ModelFigures:
    parts: dict[str, list[str]] = {}
    rest: list[str] = []
    for key in tensors.leaves:
        split = unit_of(key)
        (rest if split is None else parts.setdefault(split.unit, [])).append(key)
    units = tuple(
        facts_of_unit(name, parts[name], tensors) for name in units_in_order(tensors.leaves)
    )
    in_memory = replace(tensors, stored=None)
    loaded = tuple(
        replace(facts_of_unit(unit.name, parts[unit.name], in_memory),
                disk_slab_bytes=None, decode_bytes=0)
        for unit in units
    )  # fmt: skip
    # Cosines and sines, which diffusers' class keeps as buffers.
    tables = [_leaf((geometry.rope_max_seq_len, geometry.head_dim), "float32")] * 2
    return ModelFigures(
        label=label,
        subject=WanSubject(geometry),
        layout=_layout(label, units),
        dtype=_main_dtype(tensors.leaves.values()),
        units=units,
        rest_bytes=pack([*(tensors.leaves[key] for key in rest), *tables]).nbytes,
        loaded_units=loaded,
        notes=() if tensors.fitted is None else tensors.fitted.sentences,
    )


def _layout(label: str, units: Sequence[UnitFacts]) -> ModelLayout:
    """The units by their names and kinds, for a selection."""
    named = []
    for unit in units:
        key = unit_of(f"{unit.name}.weight")
        assert key is not None, "units are named by their keys"
        named.append(UnitLayout(unit.name, unit.kind, key.index, ()))
    return ModelLayout(label, tuple(named), ())


def _leaf(shape: tuple[int, ...], dtype: str) -> Leaf:
    return Leaf((), dtype, shape, contiguous_stride(shape))


def _computed(key: str, stored: StoredTensor, asked: str | None, main: str | None) -> str:
    """What a tensor computes in, as `open_transformer` has it."""
    inside = unit_of(key) is not None
    return computed_dtype(stored, asked, main, kept=keeps_dtype(key), inside=inside)


def _as_stored(key: str, shape: tuple[int, ...], dtype: str) -> StoredTensor:
    """A tensor of a published model, as its file of one dtype holds it."""
    return StoredTensor(key, key, 0, dtype, shape, 0, 0)


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
