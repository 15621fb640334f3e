"""Which stored tensor each parameter of a skeleton is, and which mismatches are refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..decode.formats import packed_form
from ..decode.unit_decoding import LeafForm, UnitDecoding, plain_form, stored_leaf
from ..errors import GeometryError, ModelError
from ..layout.checkpoint import Checkpoint, StoredTensor
from ..layout.geometry import to_original_key
from ..layout.geometry.strays import refuse_strays
from ..layout.geometry.verify import unread_keys
from ..layout.values import Leaf
from ..store.file_slab import Extent
from ..store.leaves import dtype_name
from ..store.places import Place
from .compute import compute_rule
from .live import LiveModel, LiveTensor, LiveUnit, describe_module, places_of


@dataclass(frozen=True, slots=True)
class StoredForm:
    """A leaf's arrays in the file, in the order of its decoding, and that decoding."""

    parts: tuple[StoredTensor, ...]
    form: LeafForm


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A skeleton as the engine sees it, with the stored form of each meta tensor by its label.

    There is one stored form for each leaf: a quantised tensor subclass rests in the file as its
    packed numbers and their scales, each computed with as it is.
    """

    live: LiveModel
    stored: Mapping[str, tuple[StoredForm, ...]]

    def forms(self, tensor: LiveTensor) -> tuple[StoredForm, ...]:
        """What is behind a live tensor; nothing for one that the skeleton computed itself."""
        return self.stored.get(tensor.places[0].label, ())

    def parts(self, tensors: Sequence[LiveTensor]) -> list[StoredTensor]:
        """All stored tensors behind live ones, in order."""
        return [p for tensor in tensors for form in self.forms(tensor) for p in form.parts]

    def decoding(self, unit: LiveUnit) -> UnitDecoding:
        """How the unit becomes what computes."""
        return UnitDecoding(tuple(f.form for t in unit.tensors for f in self.forms(t)))


def extent_of(tensor: StoredTensor) -> Extent:
    return Extent(tensor.shard, tensor.offset, tensor.nbytes)


def match_checkpoint(
    model: torch.nn.Module,
    checkpoint: Checkpoint,
    dtype: torch.dtype | None,
    block_lists: Sequence[str] = (),
) -> StoredModel:
    """Gives each meta parameter of `model` the dtype it will have and finds its bytes.

    `block_lists` as in `describe_module`. `ComputeRule` says in which dtype each computes. Raises
    GeometryError where the checkpoint lacks a tensor of the model, holds another shape, or stores
    what cannot compute.
    """
    by_key = _by_original_key(checkpoint)
    rule = compute_rule(model, checkpoint.label, by_key, dtype)
    stored: dict[str, tuple[StoredForm, ...]] = {}
    for place in list(places_of(model)):
        tensor = place.table[place.name]
        if tensor.device.type != "meta":
            continue
        _refuse_computed(place)
        found = _found(checkpoint.label, place.label, tuple(tensor.shape), by_key)
        dtype = rule.dtype_of(place, found)
        meta = torch.empty(found.shape, dtype=dtype, device="meta")
        place.table[place.name] = (
            torch.nn.Parameter(meta, requires_grad=False) if place.is_parameter else meta
        )
        stored[place.label] = (stored_form(found, stored_leaf(dtype_name(dtype), found.shape)),)
    live = describe_module(model, block_lists)
    _refuse_real(live, stored)
    _refuse_left_over(checkpoint, by_key)
    return StoredModel(live=live, stored=stored)


def match_skeleton(
    model: torch.nn.Module,
    checkpoint: Checkpoint,
    keys: Mapping[str, Sequence[str]] | None = None,
) -> StoredModel:
    """Finds the bytes of each unit's meta parameters; their dtypes stay those of `model`.

    `keys`: under which keys the leaves of a parameter rest, by its label, where that is not its
    own name. What lies outside the units, in the model and in the checkpoint, is not looked at.
    Raises GeometryError where the checkpoint lacks a tensor or holds another shape.
    """
    by_key = _by_original_key(checkpoint)
    live = describe_module(model)
    stored = {}
    for unit in live.units:
        for tensor in unit.tensors:
            if tensor.tensor.device.type == "meta":
                label = tensor.places[0].label
                named = (keys or {}).get(label, (label,))
                stored[label] = tuple(
                    stored_form(_found_leaf(checkpoint.label, key, leaf, by_key), leaf)
                    for key, leaf in zip(named, tensor.spec.leaves, strict=True)
                )
    _refuse_real(live, stored)
    return StoredModel(live=live, stored=stored)


def stored_form(found: StoredTensor, computed: Leaf) -> StoredForm:
    """The form of a leaf that rests in the file as one tensor or packed."""
    if found.packing is not None:
        return StoredForm(found.packing.parts, packed_form(found.packing, computed))
    return StoredForm((found,), plain_form(stored_leaf(found.dtype, found.shape), computed))


def _found_leaf(label: str, key: str, leaf: Leaf, by_key: dict[str, StoredTensor]) -> StoredTensor:
    """The stored tensor of a leaf; bytes that stand for fp8 numbers are read as such.

    A leaf of bytes takes what is stored there as it is, whatever it stands for.
    """
    stored = by_key.get(to_original_key(key))
    if stored is not None and _holds(stored, leaf):
        by_key[to_original_key(key)] = replace(
            stored, dtype=leaf.dtype, shape=leaf.shape, packing=None
        )
    found = _found(label, key, leaf.shape, by_key)
    packed = found.dtype == "uint8" and leaf.dtype.startswith("float8")
    return replace(found, dtype=leaf.dtype) if packed and leaf.path != () else found


def _holds(stored: StoredTensor, leaf: Leaf) -> bool:
    """Whether a leaf is the bytes of a stored tensor that is in one piece."""
    whole = stored.packing is None or len(stored.packing.parts) == 1
    return leaf.dtype == "uint8" and whole and leaf.nbytes == stored.nbytes


def _found(
    label: str, key: str, shape: tuple[int, ...], by_key: dict[str, StoredTensor]
) -> StoredTensor:
    """Takes the stored tensor of a place out of `by_key`."""
    found = by_key.pop(to_original_key(key), None)
    if found is not None and not shape and found.shape == (1,):
        found = replace(found, shape=())  # scales are written either way, and torch loads both
    _check(label, key, shape, found)
    assert found is not None
    return found


def _by_original_key(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    refuse_strays(checkpoint)
    by_key: dict[str, StoredTensor] = {}
    for key, tensor in checkpoint.tensors.items():
        other = by_key.setdefault(to_original_key(key), tensor)
        if other is not tensor:
            raise GeometryError(
                f"{checkpoint.label} holds {other.name} and {tensor.name}, two spellings of one "
                "tensor: give a checkpoint in one naming"
            )
    return by_key


def _refuse_computed(place: Place) -> None:
    if place.is_parameter or place.name not in place.module._non_persistent_buffers_set:
        return
    raise ModelError(
        f"the skeleton's buffer {place.label} is on meta and no checkpoint stores it: build the "
        "skeleton with real buffers (accelerate.init_empty_weights(include_buffers=False))"
    )


def _refuse_left_over(checkpoint: Checkpoint, left: Mapping[str, StoredTensor]) -> None:
    unread = set(unread_keys(left, {**checkpoint.tensors, **left}))
    extra = [tensor.name for key, tensor in left.items() if key not in unread]
    if extra:
        raise GeometryError(
            f"{checkpoint.label} holds {len(extra)} tensors that the model has no place for, such "
            f"as {extra[0]}: give the checkpoint of this model"
        )


def _refuse_real(live: LiveModel, stored: Mapping[str, tuple[StoredForm, ...]]) -> None:
    for unit in live.units:
        for tensor in unit.tensors:
            label = tensor.places[0].label
            if label not in stored:
                raise ModelError(
                    f"the skeleton's {label} has data already (on {tensor.tensor.device}): put "
                    "every parameter of a skeleton on the meta device"
                )


def _check(label: str, name: str, shape: tuple[int, ...], found: StoredTensor | None) -> None:
    if found is None:
        raise GeometryError(
            f"{label} lacks tensor {name}, which the model has: give the checkpoint of this model"
        )
    if found.shape != shape:
        raise GeometryError(
            f"{label}: {found.name} is {list(found.shape)}, the model has {list(shape)} there: "
            "give the checkpoint of this model"
        )
