"""Files to be: this module owns which tensor goes where, and the safetensors header that says so.

Within a file tensors lie as the reference writer lays them: wider elements first, then by name.
Shards are filled in the order of the model's `state_dict`, as the official ones are.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..layout.dtypes import ITEM_BYTES
from ..layout.shards import DIFFUSERS_STEM, SUFFIX
from ..layout.writing import header_bytes
from .spec import Spec


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written: `key` is its original key, `name` what the file calls it."""

    key: str
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be written: its first bytes, then its tensors in this order."""

    name: str
    header: bytes
    tensors: tuple[NewTensor, ...]

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


def plan_files(spec: Spec, name: str, shard_bytes: int | None) -> tuple[NewFile, ...]:
    """One file called `name`, or shards of at most `shard_bytes` of tensors, named officially.

    A tensor larger than `shard_bytes` has a shard of its own.
    """
    tensors = [
        NewTensor(key, spec.name_of(key), spec.dtype_of(key), shape)
        for key, shape in spec.shapes().items()
    ]
    if shard_bytes is None:
        return (_new_file(spec, name, tensors),)
    groups = _grouped(tensors, shard_bytes)
    count = len(groups)
    return tuple(
        _new_file(spec, f"{DIFFUSERS_STEM}-{number:05d}-of-{count:05d}{SUFFIX}", group)
        for number, group in enumerate(groups, 1)
    )


def index_json(files: Sequence[NewFile]) -> bytes:
    """The index that says which shard holds which tensor."""
    total = sum(tensor.nbytes for file in files for tensor in file.tensors)
    weight_map = {tensor.name: file.name for file in files for tensor in file.tensors}
    index = {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(index, indent=2) + "\n").encode()


def _grouped(tensors: Sequence[NewTensor], shard_bytes: int) -> list[list[NewTensor]]:
    groups: list[list[NewTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return groups


def _new_file(spec: Spec, name: str, tensors: Sequence[NewTensor]) -> NewFile:
    laid = sorted(tensors, key=lambda tensor: (-ITEM_BYTES[tensor.dtype], tensor.name))
    return NewFile(name, header_bytes(spec.metadata(), laid), tuple(laid))
