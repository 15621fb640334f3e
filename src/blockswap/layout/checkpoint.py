"""Checkpoints: this module owns opening one or many files as one validated set of tensors.

Only headers are read. What `open_checkpoint` returns has been checked once (each header on its own,
the index against the shards, names against each other) and is trusted afterwards.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError
from ..paths import input_path
from .header import FileHeader, read_header
from .prefix import bare_keys, is_padding
from .quoting import quote, some
from .shards import FoundFiles, find_files
from .stamp import verify_unchanged

STATED_PREFIX = "wan."  # of metadata that says what fixes the model


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor of the transformer rests: `shard` indexes the checkpoint's `headers`.

    `name` is the name in the file, `key` the same without the checkpoint's prefix; `dtype` as
    torch spells it; `offset` (from the first byte of the file) and `nbytes` in bytes.
    """

    name: str
    key: str
    shard: int
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A validated checkpoint: `tensors` by key (prefix taken off), in file order.

    `left_out` names what is in the files beside the transformer; `config` is the folder's
    config.json, `metadata` the union of the headers' metadata.
    """

    label: str
    headers: tuple[FileHeader, ...]
    prefix: str
    tensors: Mapping[str, StoredTensor]
    left_out: tuple[str, ...]
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(header.path for header in self.headers)

    @property
    def nbytes(self) -> int:
        """Bytes of the transformer's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def verify_unchanged(self) -> None:
        """Raises ReadError when a file was edited, cut or replaced since it was opened."""
        for header in self.headers:
            verify_unchanged(header)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a `.safetensors` file, an index, or a folder, from headers alone.

    Raises CheckpointError (HeaderError where one file is at fault), one sentence each.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(
            f"a checkpoint is given by one path, not by a {type(path).__name__}: of several shards "
            "give their index or their folder"
        )
    found = find_files(input_path(path))
    return checkpoint_of(found, tuple(read_header(file) for file in found.files))


def checkpoint_of(found: FoundFiles, headers: tuple[FileHeader, ...]) -> Checkpoint:
    """The checkpoint of files whose headers are read already. Raises CheckpointError."""
    owner = _owners(found, headers)
    prefix, keys = bare_keys(found.label, owner)
    return _checkpoint(found, headers, prefix, keys)


def whole_checkpoint(found: FoundFiles) -> Checkpoint:
    """All tensors of any model's files, under the names that they have there."""
    headers = tuple(read_header(file) for file in found.files)
    owner = _owners(found, headers)
    return _checkpoint(found, headers, "", {n: n for n in owner if not is_padding(n)})


def _checkpoint(
    found: FoundFiles, headers: tuple[FileHeader, ...], prefix: str, keys: Mapping[str, str]
) -> Checkpoint:
    """The checkpoint of the tensors whose names in the file are in `keys`."""
    tensors = {
        keys[tensor.name]: StoredTensor(
            name=tensor.name,
            key=keys[tensor.name],
            shard=shard,
            dtype=tensor.dtype,
            shape=tensor.shape,
            offset=tensor.offset,
            nbytes=tensor.nbytes,
        )
        for shard, header in enumerate(headers)
        for tensor in header.tensors
        if tensor.name in keys
    }
    return Checkpoint(
        label=found.label,
        headers=headers,
        prefix=prefix,
        tensors=MappingProxyType(tensors),
        left_out=tuple(t.name for h in headers for t in h.tensors if t.name not in keys),
        metadata=MappingProxyType(_metadata(found.label, headers)),
        config=None if found.config is None else MappingProxyType(dict(found.config)),
    )


def _owners(found: FoundFiles, headers: Sequence[FileHeader]) -> dict[str, int]:
    """For each tensor name the shard that holds it, checked against the index."""
    owner: dict[str, int] = {}
    for shard, header in enumerate(headers):
        for tensor in header.tensors:
            if tensor.name in owner:
                raise CheckpointError(
                    f"{found.label} holds tensor {quote(tensor.name)} twice, in "
                    f"{headers[owner[tensor.name]].path.name} and {header.path.name}: "
                    "the shards are not of one checkpoint, download them again"
                )
            owner[tensor.name] = shard
    if found.index is not None:
        _check_index(found.index, owner, headers)
    return owner


def _check_index(
    index: Mapping[str, int], owner: Mapping[str, int], headers: Sequence[FileHeader]
) -> None:
    for name, shard in index.items():
        if owner.get(name) != shard:
            raise CheckpointError(
                f"{headers[shard].path} lacks tensor {quote(name)}, which its index says it "
                "holds: index and shards are not of one download, fetch them again"
            )
    unlisted = [name for name in owner if name not in index]
    if unlisted:
        raise CheckpointError(
            f"{headers[owner[unlisted[0]]].path} holds {len(unlisted)} tensors that its index "
            f"does not list ({some(unlisted)}): index and shards are not of one download, "
            "fetch them again"
        )


def _metadata(label: str, headers: Sequence[FileHeader]) -> dict[str, str]:
    """The union of all shards' metadata; where they differ the first shard's word stands, but not
    on what fixes the model."""
    union: dict[str, str] = {}
    for header in headers:
        for key, value in header.metadata.items():
            first = union.setdefault(key, value)
            if first != value and key.startswith(STATED_PREFIX):
                raise CheckpointError(
                    f"{label}: its shards disagree, {key} is {quote(first)} in one and "
                    f"{quote(value)} in {header.path.name}: the shards are not of one checkpoint, "
                    "download them again"
                )
    return union
