"""Checkpoints: this module owns opening one or many files as one validated set of tensors.

Only headers are read. What `open_checkpoint` returns has been checked once (each header on its own,
the index against the shards, names against each other) and is trusted afterwards.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError
from ..paths import input_path
from .gguf_header import is_gguf, read_gguf_header
from .header import FileHeader, FileTensor, read_header
from .prefix import bare_keys, is_padding
from .quoting import quote, some
from .shards import FoundFiles, find_files
from .stamp import verify_unchanged

_PARTS_KEY = "split.count"  # of a GGUF header
STATED_PREFIX = "wan."  # of metadata that says what fixes the model


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor of the transformer rests: `shard` indexes the checkpoint's `headers`.

    `name` is the name in the file, `key` the same without the checkpoint's prefix; `dtype` as
    torch spells it; `offset` (from the first byte of the file) and `nbytes` in bytes.

    A weight that several tensors of the file hold, or one in another form, has a `packing`: then
    `shape` is the weight's own and `nbytes` counts all that holds it.
    """

    name: str
    key: str
    shard: int
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    packing: "Packing | None" = None

    def as_dtype(self, dtype: str) -> "StoredTensor":
        """The same bytes, read as another element type of the same size."""
        return replace(self, dtype=dtype)


@dataclass(frozen=True, slots=True)
class Packing:
    """How a weight is packed: by which decoder, from which tensors, in the order it takes them.

    `grid` is how many scales the weight has above each other and side by side, `rotation` the
    width of the groups that its rows were rotated in (0: not at all), `shape` the weight's own
    where it is not that of its first tensor.
    """

    format: str
    parts: tuple[StoredTensor, ...]
    grid: tuple[int, int] = (1, 1)
    rotation: int = 0
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A validated checkpoint: `tensors` by key (prefix taken off), in file order.

    `left_out` names what is in the files beside the transformer; `config` is the folder's
    config.json, `metadata` the union of the headers' metadata. `notes` are sentences on what in it
    is not used. Files from number `modules_from` on are modules' that go onto the model.
    """

    label: str
    headers: tuple[FileHeader, ...]
    prefix: str
    tensors: Mapping[str, StoredTensor]
    left_out: tuple[str, ...]
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    modules_from: int | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(header.path for header in self.headers)

    @property
    def in_gguf(self) -> bool:
        """Whether it is a GGUF file: weights may be in GGML's blocks."""
        return any(map(is_gguf, self.paths))

    @property
    def nbytes(self) -> int:
        """Bytes of the transformer's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def verify_unchanged(self) -> None:
        """Raises ReadError when a file was edited, cut or replaced since it was opened."""
        for header in self.headers:
            verify_unchanged(header)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a `.safetensors` or `.gguf` file, an index, or a folder, from headers alone.

    Raises CheckpointError (HeaderError where one file is at fault), one sentence each.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(
            f"a checkpoint is given by one path, not by a {type(path).__name__}: of several shards "
            "give their index or their folder"
        )
    found = find_files(input_path(path))
    return checkpoint_of(found, tuple(map(_header, found.files)))


def _header(file: Path) -> FileHeader:
    return read_gguf_header(file) if is_gguf(file) else read_header(file)


def checkpoint_of(found: FoundFiles, headers: tuple[FileHeader, ...]) -> Checkpoint:
    """The checkpoint of files whose headers are read already. Raises CheckpointError."""
    owner = _owners(found, headers)
    prefix, keys = bare_keys(found.label, owner)
    return _checkpoint(found, headers, prefix, keys)


def whole_checkpoint(found: FoundFiles) -> Checkpoint:
    """All tensors of any model's files, under the names that they have there."""
    headers = tuple(map(_header, found.files))
    owner = _owners(found, headers)
    return _checkpoint(found, headers, "", {n: n for n in owner if not is_padding(n)})


def _checkpoint(
    found: FoundFiles, headers: tuple[FileHeader, ...], prefix: str, keys: Mapping[str, str]
) -> Checkpoint:
    """The checkpoint of the tensors whose names in the file are in `keys`."""
    _refuse_parts(headers)
    tensors = {
        keys[tensor.name]: _stored(tensor, keys[tensor.name], shard)
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


def _refuse_parts(headers: Sequence[FileHeader]) -> None:
    """A part of a split GGUF file says so, whatever it is called."""
    for header in headers:
        parts = header.metadata.get(_PARTS_KEY, "1")
        if is_gguf(header.path) and parts not in ("0", "1", str(len(headers))):
            raise CheckpointError(
                f"{header.path} is one of {parts} parts of a split file, of which {len(headers)} "
                "was found: put all parts into one folder, under the names that they came with"
            )


def _stored(tensor: FileTensor, key: str, shard: int) -> StoredTensor:
    """A tensor of a shard; GGML's blocks are bytes that stand for a weight."""
    stored = StoredTensor(
        name=tensor.name,
        key=key,
        shard=shard,
        dtype=tensor.dtype,
        shape=tensor.shape,
        offset=tensor.offset,
        nbytes=tensor.nbytes,
    )
    if not tensor.block:
        return stored
    shape = tensor.weight_shape
    packing = Packing(f"GGUF {tensor.block}", (stored,), shape=shape)
    return replace(stored, shape=shape, packing=packing)


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
