"""Tensors of a model that is not loaded: as they compute and are stored, what LoRAs change."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..layout.checkpoint import StoredTensor
from ..layout.values import Leaf
from ..lora.fit import Fitted
from ..lora.kinds import Change


@dataclass(frozen=True, slots=True)
class TensorBytes:
    """Tensors by diffusers' names; `stored` where there is a checkpoint, of so many `files`."""

    leaves: Mapping[str, Leaf]
    stored: Mapping[str, StoredTensor] | None = None
    files: int = 0
    fitted: Fitted | None = None

    def changes(self, key: str) -> tuple[tuple[int, Change], ...]:
        """What LoRAs do to a tensor, each with the number of its file."""
        return () if self.fitted is None else self.fitted.changes.get(key, ())
