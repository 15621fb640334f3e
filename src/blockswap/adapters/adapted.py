"""A model's tensors with LoRAs behind them: which are changed, and where the factors rest.

The factors are further arrays of the tensors they change: they rest, move and are read with their
block, and the steps that merge them are the last of its decoding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..decode.unit_decoding import LeafForm, UnitDecoding, plain_form, stored_leaf
from ..errors import ModelError
from ..layout.checkpoint import Checkpoint, StoredTensor
from ..layout.dtypes import HALVES, PLAIN_FLOATS
from ..layout.header import FileTensor
from ..layout.values import TensorSpec, UnitLayout
from ..lora.file import LoraFile, read_factors
from ..lora.fit import Fitted, fit
from ..lora.kinds import Change
from ..lora.spelling import Names
from .live import LiveModel, LiveTensor, LiveUnit
from .recast import without_data_in
from .skeleton import keeps_fp32
from .stored import StoredForm, StoredModel


def fit_model(live: LiveModel, files: Sequence[LoraFile]) -> Fitted:
    """What the LoRAs change in a model. Raises CheckpointError, GeometryError or ModelError."""
    tensors = {_label(t): t for t in (*_tensors(live), *live.tables)}
    tables = set(map(_label, live.tables))
    shapes = {label: tuple(tensor.tensor.shape) for label, tensor in tensors.items()}
    names = Names(shapes)
    for label in (names.weight(layer.path) for file in files for layer in file.layers):
        if label is not None and label not in tables:
            _refuse_quantised(tensors[label])  # before its shape, which is that of what is packed
    fitted = fit(files, shapes, live.layout.label)
    for label in fitted.changes:
        if label in tables:
            raise ModelError(
                f"a LoRA was to be merged into {label}, of which a forward reads the rows that it "
                "looks up and nothing else: load it beside the weights (PEFT's "
                "inject_adapter_in_model), or merge it into the model before"
            )
        _refuse_quantised(tensors[label])
    return fitted


def with_loras(
    model: StoredModel, checkpoint: Checkpoint, fitted: Fitted
) -> tuple[StoredModel, Checkpoint]:
    """The model and the files behind it, the LoRAs' among them.

    What the class keeps in fp32 may compute in a block as it is stored, in 16 bits, for those are
    widened where they are used: with a LoRA in it that would round the sum.
    """
    first = len(checkpoint.headers)
    stored, widened = dict(model.stored), {}
    for label, changes in fitted.changes.items():
        (plain,) = stored[label]
        parts = [
            part_of_file(tensor, first + n) for n, change in changes for tensor in change.tensors
        ]
        form = plain.form
        if form.computed.dtype in HALVES and keeps_fp32(model.live.root, label):
            widened[label] = torch.float32
            form = plain_form(form.stored[0], replace(form.computed, dtype="float32"))
        form = merged_form(form, [change for _, change in changes])
        stored[label] = (StoredForm((*plain.parts, *parts), form),)
    headers = (*checkpoint.headers, *(file.header for file in fitted.files))
    live = without_data_in(model.live, widened)
    return StoredModel(live, stored), replace(checkpoint, headers=headers)


@dataclass(frozen=True, slots=True)
class InMemory:
    """The LoRAs of a loaded model: the form of each tensor they change, by label, and its factors.

    The factors are in host memory; the tensors themselves stay as they are.
    """

    forms: Mapping[str, LeafForm]
    factors: Mapping[str, tuple[torch.Tensor, ...]]
    fitted: Fitted | None = None

    def decoding(self, unit: LiveUnit) -> UnitDecoding | None:
        """How the unit becomes what computes; None for one that no LoRA changes."""
        if not any(_label(tensor) in self.forms for tensor in unit.tensors):
            return None
        forms: list[LeafForm] = []
        for tensor in unit.tensors:
            own = self.forms.get(_label(tensor))
            forms += [own] if own else [plain_form(leaf, leaf) for leaf in tensor.spec.leaves]
        return UnitDecoding(tuple(forms))

    def layout(self, unit: LiveUnit) -> UnitLayout:
        """What the unit consists of in host memory: its tensors, each with its factors behind."""
        specs: list[TensorSpec] = []
        for tensor in unit.tensors:
            specs.append(tensor.spec)
            own = self.forms.get(_label(tensor))
            leaves = () if own is None else own.stored[len(tensor.spec.leaves) :]
            specs += [TensorSpec(f"{tensor.spec.name}.lora", (leaf,)) for leaf in leaves]
        return replace(unit.layout, tensors=tuple(specs))

    def tensors(self, unit: LiveUnit) -> list[torch.Tensor]:
        """The tensors of `layout`, in its order."""
        found: list[torch.Tensor] = []
        for tensor in unit.tensors:
            found += [tensor.tensor, *self.factors.get(_label(tensor), ())]
        return found

    def form(self, tensor: LiveTensor) -> LeafForm | None:
        """The form of a tensor that a LoRA changes."""
        return self.forms.get(_label(tensor))

    def factors_of(self, tensor: LiveTensor) -> tuple[torch.Tensor, ...]:
        return self.factors.get(_label(tensor), ())


NO_LORAS = InMemory({}, {})


def in_memory(live: LiveModel, files: Sequence[LoraFile]) -> InMemory:
    """LoRAs for a loaded model, their factors read. Raises as `fit_model`."""
    if not files:
        return NO_LORAS
    fitted = fit_model(live, files)
    leaves = {_label(t): t.spec.leaves[0] for t in _tensors(live) if t.spec.leaves}
    read = _factors(fitted)
    forms, factors = {}, {}
    for label, changes in fitted.changes.items():
        leaf = leaves[label]
        forms[label] = merged_form(plain_form(leaf, leaf), [change for _, change in changes])
        factors[label] = tuple(
            read[number][tensor.name] for number, change in changes for tensor in change.tensors
        )
    return InMemory(forms, factors, fitted)


def _factors(fitted: Fitted) -> list[dict[str, torch.Tensor]]:
    """The factors of each file by name; every file is opened once."""
    wanted: list[list[FileTensor]] = [[] for _ in fitted.files]
    for changes in fitted.changes.values():
        for number, change in changes:
            wanted[number] += change.tensors
    return [read_factors(file, tensors) for file, tensors in zip(fitted.files, wanted, strict=True)]


def _label(tensor: LiveTensor) -> str:
    return tensor.places[0].label


def merged_form(form: LeafForm, changes: Sequence[Change]) -> LeafForm:
    """The form of a leaf with the changes merged in."""
    leaves = [stored_leaf(t.dtype, t.shape) for change in changes for t in change.tensors]
    return form.merged_with([change.merged for change in changes], leaves)


def _tensors(live: LiveModel) -> list[LiveTensor]:
    placed = [tensor for unit in live.units for tensor in unit.tensors]
    return [t for t in (*placed, *live.rest) if t.places[0].is_parameter]


def _refuse_quantised(tensor: LiveTensor) -> None:
    """A LoRA is merged into plain floats alone; what computes in another form has none."""
    leaves = tensor.spec.leaves
    if tensor.spec.recipe is not None or len(leaves) != 1 or leaves[0].dtype not in PLAIN_FLOATS:
        raise ModelError(
            f"a LoRA was to be merged into {_label(tensor)}, which computes in a quantised "
            "form: load it beside the weights (pipe.load_lora_weights), or open the model in bf16"
        )


def part_of_file(tensor: FileTensor, shard: int) -> StoredTensor:
    """A factor as a stored tensor of the file number `shard`."""
    return StoredTensor(tensor.name, tensor.name, shard, tensor.dtype, tensor.shape, tensor.offset,
                        tensor.nbytes)  # fmt: skip
