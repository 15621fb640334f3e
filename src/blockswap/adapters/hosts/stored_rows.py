"""What the engine opens, from a skeleton whose parameters say which bytes of a file they are."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

import torch

from ...decode.packed_rows import bytes_of_rows
from ...decode.steps import Cast
from ...decode.unit_decoding import joined_form, stored_leaf
from ...errors import GeometryError
from ...layout.checkpoint import Checkpoint, StoredTensor
from ...layout.quoting import quote, some
from ...layout.values import Leaf
from ...store.leaves import dtype_name
from ..live import describe_module, places_of
from ..stored import StoredForm, StoredModel, stored_form
from .file_rows import FileRows, Run, rows_of


def rows_by_name(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """A state dict of the whole checkpoint, without data."""
    return {key: rows_of(tensor) for key, tensor in checkpoint.tensors.items()}


def stored_by_rows(
    model: torch.nn.Module, label: str, block_lists: Sequence[str] = ()
) -> StoredModel:
    """The skeleton as the engine sees it; its `FileRows` become meta tensors of their dtypes.

    One object that hangs in several places stays one. Raises GeometryError where a weight is no
    range of the file, and where one has no data at all.
    """
    made: dict[int, torch.Tensor] = {}
    stored: dict[str, tuple[StoredForm, ...]] = {}
    kept = []  # ids stay those of these objects
    for place in list(places_of(model)):
        rows = place.table[place.name]
        if not isinstance(rows, FileRows):
            if rows.is_meta:
                raise GeometryError(
                    f"{label} lacks tensor {place.label}, which the model has: give the checkpoint "
                    "of this model"
                )
            continue
        kept.append(rows)
        if id(rows) not in made:
            meta = torch.empty(rows.shape, dtype=rows.dtype, device="meta")
            made[id(rows)] = (
                torch.nn.Parameter(meta, requires_grad=False) if place.is_parameter else meta
            )
        place.table[place.name] = made[id(rows)]
        leaf = stored_leaf(dtype_name(rows.dtype), tuple(rows.shape))
        stored[place.label] = (_form(label, place.label, rows, leaf),)
    live = describe_module(model, block_lists)
    whole = [t for t in live.tables if not _has_rows(stored[t.places[0].label][0])]
    if whole:  # packed as a whole, or in pieces: there are no rows to read, all is loaded
        tables = tuple(t for t in live.tables if not any(t is w for w in whole))
        layout = replace(live.layout, rest=(*live.layout.rest, *(t.spec for t in whole)))
        live = replace(live, tables=tables, rest=(*live.rest, *whole), layout=layout)
    return StoredModel(live=live, stored=stored)


def _has_rows(form: StoredForm) -> bool:
    """Whether a table's rows lie in the file one behind the other, cast or decoded one by one."""
    if len(form.parts) != 1:
        return False
    plain = all(isinstance(step, Cast) for step in form.form.steps)
    return bytes_of_rows(form.form) is not None or (plain and form.parts[0].packing is None)


def refuse_unused(label: str, class_name: str, names: Iterable[str]) -> None:
    """Raises GeometryError for tensors of the file that the class has no place for."""
    extra = sorted(names)
    if extra:
        raise GeometryError(
            f"{label} holds {len(extra)} tensors that {class_name} has no place for "
            f"({some(extra)}): give the checkpoint of this model, in a form that it computes with"
        )


def refuse_missing(label: str, class_name: str, names: Iterable[str]) -> None:
    """Raises GeometryError for tensors of the class that the file has not."""
    missing = sorted(names)
    if missing:
        raise GeometryError(
            f"{label} lacks {len(missing)} tensors that {class_name} has ({some(missing)}): give "
            "the whole checkpoint of this model"
        )


def _form(label: str, name: str, rows: FileRows, leaf: Leaf) -> StoredForm:
    origin = rows.blockswap_origin
    if origin.computed_by:
        raise GeometryError(
            f"{label}: {name} is made by arithmetic ({origin.computed_by}) from what the file "
            "holds, and streamed weights are ranges of the file: save the model once with "
            "save_pretrained and open that folder"
        )
    if len(origin.runs) == 1:
        return stored_form(_range(label, name, origin.runs[0], tuple(rows.shape)), leaf)
    parts = tuple(_range(label, name, run, (run.count,)) for run in origin.runs)
    leaves = [stored_leaf(part.dtype, part.shape) for part in parts]
    return StoredForm(parts, joined_form(leaves, leaf))


def _range(label: str, name: str, run: Run, shape: tuple[int, ...]) -> StoredTensor:
    """The bytes of a run, as a tensor of their own."""
    tensor = run.tensor
    total = prod(tensor.shape)
    if run.count == total and shape == tensor.shape:
        return tensor
    if tensor.packing is not None:
        raise GeometryError(
            f"{label}: {name} is a part of {quote(tensor.name)}, which is quantised as a whole: "
            "open a bf16, fp16 or fp32 checkpoint"
        )
    item = tensor.nbytes // max(total, 1)
    return replace(
        tensor, shape=shape, offset=tensor.offset + run.start * item, nbytes=run.count * item
    )
