"""Weights of a model that is streamed from its file, for whoever asks for them outside a forward.

Between the runs of their block they are on the meta device. A node that merges models takes them
into its patches: it is given tensors that are mapped from the file. Who would save the model is
refused, for what is saved would be the file, without the patches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...adapters.live import places_of
from ...errors import ModelError
from ...layout.values import TensorSpec
from ...store.leaves import spec_of
from ..seams.gguf import is_packed
from .contents import FileContents, Read, as_the_model_has_it

_ATTRIBUTE = "blockswap_file_weights"
_PREFIX = "diffusion_model."


@dataclass(frozen=True, slots=True)
class FileWeights:
    """Each weight that is in a file only, by its name in the transformer, and its keys there."""

    contents: FileContents
    specs: Mapping[str, tuple[TensorSpec, Sequence[str]]]
    notes: Mapping[str, Mapping[str, Any]]  # what a pack has noted on its own tensors

    def mapped(self, label: str, read: Read) -> torch.Tensor:
        """The weight in the dtype that it computes in; where the file has that, mapped from it."""
        made: torch.Tensor = as_the_model_has_it(read, *self.specs[label])
        vars(made).update(self.notes[label])
        return made


def keep_file_weights(
    model: Any, contents: FileContents, keys: Mapping[str, Sequence[str]]
) -> None:
    """Notes on a shared model object where its weights are, all of which are on meta now."""
    specs, notes = {}, {}
    for place in places_of(model.diffusion_model):
        found, tensor = keys.get(place.label), place.table[place.name]
        if found is not None:
            specs[place.label] = spec_of(place.name, tensor, label=place.label), found
            notes[place.label] = dict(vars(tensor)) if is_packed(tensor) else {}
    setattr(model, _ATTRIBUTE, FileWeights(contents, specs, notes))
    model.state_dict_for_saving = refuse_to_save


def with_mapped(model: Any, patches: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """What the host made of a model's weights for a merge, with those of the file in their place.

    The first entry of each list is (weight, conversion).
    """
    weights: FileWeights | None = vars(model).get(_ATTRIBUTE)
    if weights is None:
        return patches
    with weights.contents.reading() as read:
        for key, entries in patches.items():
            label = key.removeprefix(_PREFIX)
            if label in weights.specs:
                entries[0] = (weights.mapped(label, read), *entries[0][1:])
    return patches


def refuse_to_save(*_: Any, **__: Any) -> Any:
    raise ModelError(
        "this model is streamed from its file, and what would be saved is that file without its "
        "patches (LoRA, merges): load it with ComfyUI's own loader to save it"
    )
