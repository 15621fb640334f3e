"""A skeleton and the checkpoint behind it: which stored tensor each of its parameters is."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from blockswap.adapters.live import LiveModel, LiveTensor, describe_module, places_of
from blockswap.adapters.skeleton import keeps_fp32
from blockswap.errors import GeometryError
from blockswap.layout.checkpoint import Checkpoint, StoredTensor
from blockswap.layout.geometry import to_original_key
from blockswap.store.file_slab import Extent
from blockswap.store.leaves import torch_dtype


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A skeleton as the engine sees it, with the stored form of each meta tensor by its label."""

    live: LiveModel
    stored: Mapping[str, StoredTensor]

    def stored_form(self, tensor: LiveTensor) -> StoredTensor | None:
        """The stored tensor behind a live one; None for one that the skeleton computed itself."""
        return self.stored.get(tensor.places[0].label)


def extent_of(tensor: StoredTensor) -> Extent:
    return Extent(tensor.shard, tensor.offset, tensor.nbytes)


def match_checkpoint(
    model: torch.nn.Module, checkpoint: Checkpoint, dtype: torch.dtype | None
) -> StoredModel:
    """Gives each meta parameter of `model` the dtype it will have and finds its bytes.

    Without `dtype` the file's own dtypes are the truth; with it, floating-point tensors compute
    in `dtype` except those that the model's class wants in fp32. Raises GeometryError where the
    checkpoint lacks a tensor of the model or holds another shape.
    """
    by_key = {to_original_key(key): tensor for key, tensor in checkpoint.tensors.items()}
    stored: dict[str, StoredTensor] = {}
    for place in list(places_of(model)):
        tensor = place.table[place.name]
        if tensor.device.type != "meta":
            continue
        found = by_key.get(to_original_key(place.label))
        _check(checkpoint.label, place.label, tuple(tensor.shape), found)
        assert found is not None
        wanted = _compute_dtype(model, place.label, torch_dtype(found.dtype), dtype)
        meta = torch.empty(found.shape, dtype=wanted, device="meta")
        place.table[place.name] = (
            torch.nn.Parameter(meta, requires_grad=False) if place.is_parameter else meta
        )
        stored[place.label] = found
    return StoredModel(live=describe_module(model), stored=stored)


def _compute_dtype(
    model: torch.nn.Module, label: str, stored: torch.dtype, wanted: torch.dtype | None
) -> torch.dtype:
    if wanted is None or not stored.is_floating_point:
        return stored
    return torch.float32 if keeps_fp32(model, label) else wanted


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
