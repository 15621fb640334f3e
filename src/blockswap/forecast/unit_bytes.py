"""Bytes of a unit of a model that is not loaded: resident, in RAM, read from the file, decoded."""

from collections.abc import Sequence
from dataclasses import replace

from ..adapters.adapted import merged_form, part_of_file
from ..adapters.stored import extent_of, stored_form
from ..decode.unit_decoding import LeafForm, UnitDecoding, plain_form
from ..layout.geometry import unit_of
from ..layout.slab import pack
from ..plan import UnitFacts
from ..store.file_slab import Extent, file_slab
from .tensor_bytes import TensorBytes


def facts_of_unit(name: str, keys: Sequence[str], tensors: TensorBytes) -> UnitFacts:
    """What the planner knows of a unit that consists of the tensors `keys`."""
    kind = unit_of(keys[0])
    assert kind is not None, "the keys of a unit name it"
    nbytes = pack([tensors.leaves[key] for key in keys]).nbytes
    decoding = UnitDecoding(tuple(_form(key, tensors) for key in keys))
    facts = UnitFacts(name, kind.kind, nbytes, nbytes, nbytes)
    facts = replace(
        facts,
        disk_slab_bytes=_disk_bytes(keys, decoding, tensors),
        decode_bytes=decoding.buffer_bytes,
        decode_moved_bytes=decoding.cost.moved_bytes,
    )
    if not decoding.rests_stored:
        return facts
    ram = pack(decoding.stored).nbytes
    return replace(facts, ram_slab_bytes=ram, ram_decode_bytes=decoding.buffer_bytes)


def _form(key: str, tensors: TensorBytes) -> LeafForm:
    """From the stored form, or without a file from the compute form, to what computes."""
    leaf, changes = tensors.leaves[key], [change for _, change in tensors.changes(key)]
    stored = tensors.stored
    form = plain_form(leaf, leaf) if stored is None else stored_form(stored[key], leaf).form
    return merged_form(form, changes) if changes else form


def _disk_bytes(keys: Sequence[str], decoding: UnitDecoding, tensors: TensorBytes) -> int:
    """What is read for a unit; of a model without a file, as if it were one piece of one."""
    if tensors.stored is None:
        return pack(decoding.stored).nbytes
    return file_slab([extent for key in keys for extent in _extents(key, tensors)]).slab.nbytes


def _extents(key: str, tensors: TensorBytes) -> list[Extent]:
    """Where a tensor and the factors that change it lie, in their files."""
    if tensors.stored is None:
        return []
    stored = tensors.stored[key]
    parts = [*stored_form(stored, tensors.leaves[key]).parts]
    for number, change in tensors.changes(key):
        parts += [part_of_file(tensor, tensors.files + number) for tensor in change.tensors]
    return [extent_of(part) for part in parts]
