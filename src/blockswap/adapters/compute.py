"""In which dtype each stored tensor computes, and which stored dtypes are refused.

Without a dtype a host library's model computes as its own loader would have it compute: in the
dtype that most of the file's bytes have (of a quantised file, of what is not), with what the class
keeps in fp32 in fp32. A skeleton of the caller's own may know other forms: its own layers compute
in what is stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import GeometryError
from ..layout.checkpoint import StoredTensor
from ..layout.formats.main_dtype import computed_dtype, main_dtype, refuse_whole_numbers
from ..layout.geometry import unit_of
from ..layout.quoting import quote
from ..store.leaves import dtype_name, torch_dtype
from ..store.places import Place
from .skeleton import keeps_fp32

# Layers from here compute with their weight as it is. Any other may decode it by itself.
_PLAIN_LAYERS = ("torch.", "diffusers.")


@dataclass(frozen=True, slots=True)
class ComputeRule:
    """The dtype of every tensor of `model`: `asked` by the caller, or else the file's `main`."""

    model: torch.nn.Module
    label: str
    asked: torch.dtype | None
    main: str | None

    def dtype_of(self, place: Place, found: StoredTensor) -> torch.dtype:
        """What a stored tensor computes in. Raises GeometryError where it cannot compute."""
        plain = type(place.module).__module__.startswith(_PLAIN_LAYERS)
        if found.packing is None and place.is_parameter and plain:
            self._refuse(found, torch_dtype(found.dtype))
        chosen = computed_dtype(
            found,
            None if self.asked is None else dtype_name(self.asked),
            self.main if plain or found.packing is not None else None,
            kept=keeps_fp32(self.model, place.label),
            inside=unit_of(place.label) is not None,
        )
        return torch_dtype(chosen)

    def _refuse(self, found: StoredTensor, stored: torch.dtype) -> None:
        refuse_whole_numbers(self.label, found)
        if self.asked is None and self.main is None and not _computes(stored):
            raise GeometryError(
                f"{self.label} stores tensor {quote(found.name)} as {found.dtype}, which does "
                "not compute: give dtype=torch.bfloat16"
            )


def compute_rule(
    model: torch.nn.Module,
    label: str,
    tensors: Mapping[str, StoredTensor],
    asked: torch.dtype | None,
) -> ComputeRule:
    """The rule for a model filled from `tensors`."""
    hosted = getattr(type(model), "_keep_in_fp32_modules", None) is not None
    return ComputeRule(model, label, asked, main_dtype(tensors.values()) if hosted else None)


def _computes(dtype: torch.dtype) -> bool:
    return dtype.itemsize > 1
