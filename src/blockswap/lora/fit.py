"""Which tensors of a model the LoRAs change, in their order; a key that fits nothing is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import GeometryError
from ..layout.quoting import some
from ..units import format_bytes
from .file import Layer, LoraFile
from .kinds import Change, Shape, bias_changes, weight_changes
from .spelling import Names

_PARTIAL = "Lora(..., partial=True) (on the command line --lora-partial)"
_BIAS_PARTS = frozenset({"up_bias", "diff_b"})


@dataclass(frozen=True, slots=True)
class Fitted:
    """Each change with the number of its file, by the label of the tensor that it changes."""

    files: tuple[LoraFile, ...]
    changes: Mapping[str, tuple[tuple[int, Change], ...]]
    left_out: tuple[str, ...] = ()  # sentences on what a partial file has beside the model's

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        found = (change for each in self.changes.values() for _, change in each)
        return sum(tensor.nbytes for change in found for tensor in change.tensors)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the plan says of them."""
        named = ", ".join(f"{file.label} at {file.asked.strength:g}" for file in self.files)
        count = len(self.files)
        return (
            f"{count} LoRA{'s are' if count > 1 else ' is'} merged on the device when a block "
            f"arrives ({named}): {format_bytes(self.nbytes)} of factors rest and move with the "
            f"{len(self.changes)} tensors that they change",
            *self.left_out,
        )


def fit(files: Sequence[LoraFile], shapes: Mapping[str, Shape], model: str) -> Fitted:
    """Matches LoRAs with the parameters of a model, `{label: shape}`.

    Raises CheckpointError or GeometryError: one sentence that names the file and the key.
    """
    names = Names(shapes)
    found = _Found(shapes, model)
    sentences = []
    for number, file in enumerate(files):
        left: list[str] = []
        for layer in file.layers:
            left += found.add(number, file, layer, names)
        total = sum(len(layer.parts) for layer in file.layers)
        if left and (not file.asked.partial or len(left) == total):
            instead = "" if len(left) == total else f", or leave them out by {_PARTIAL}"
            raise GeometryError(
                f"{file.label} has {len(left)} of {total} tensors for layers that the {model} does "
                f"not have ({some(left)}): give the LoRA of this model{instead}"
            )
        if left:
            sentences.append(
                f"{len(left)} of {total} tensors of the LoRA {file.label} are left out, the "
                f"{model} has no such layers: {some(left)}"
            )
    changes = {label: tuple(each) for label, each in found.changes.items()}
    return Fitted(tuple(files), changes, tuple(sentences))


@dataclass(slots=True)
class _Found:
    """What was found so far."""

    shapes: Mapping[str, Shape]
    model: str
    changes: dict[str, list[tuple[int, Change]]] = field(default_factory=dict)
    owners: dict[tuple[int, str], str] = field(default_factory=dict)

    def add(self, number: int, file: LoraFile, layer: Layer, names: Names) -> list[str]:
        """Adds a layer of file `number`; returns the keys that the model has no place for."""
        left = []
        own = set(layer.parts) - _BIAS_PARTS
        if not layer.parts and (label := names.weight(layer.path)) is not None:
            self._own(number, file, layer, label)  # an alpha: of factors in another spelling?
        for kinds, label, changes in (
            (own, names.weight(layer.path), weight_changes),
            (set(layer.parts) & _BIAS_PARTS, names.bias(layer.path), bias_changes),
        ):
            if kinds and label is None:
                left += [layer.parts[kind].name for kind in sorted(kinds)]
            elif kinds and label is not None:
                self._own(number, file, layer, label)
                made = changes(file, layer, self.shapes[label], self.model)
                self.changes.setdefault(label, []).extend((number, each) for each in made)
        return left

    def _own(self, number: int, file: LoraFile, layer: Layer, label: str) -> None:
        other = self.owners.setdefault((number, label), layer.path)
        if other != layer.path:
            raise GeometryError(
                f"{file.label} changes {label} twice, as {other} and as {layer.path}: save it in "
                "one spelling"
            )
