"""Weights: this module owns what of a source goes into the new file, and decoding what is packed.

Without a dtype every tensor goes along as it is. With one, a quantised checkpoint becomes a plain
one: each packed weight is one tensor, and what only its decoding needs is left out. A weight is
decoded whole, by the same steps that decode it when it is streamed.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..decode.formats import packed_form
from ..decode.unit_decoding import decoded_on_host, stored_leaf
from ..errors import ArgsError, GeometryError
from ..layout.checkpoint import Checkpoint, Packing, StoredTensor, open_checkpoint
from ..layout.formats import unpacked
from ..layout.geometry.joined import joined
from ..layout.header import FileTensor
from ..layout.prefix import is_padding
from ..store.leaves import torch_dtype

AnySources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
SourceTensor = FileTensor | StoredTensor
Source = tuple[int, SourceTensor]  # the shard, and the tensor in it


def open_sources(source: AnySources) -> tuple[Checkpoint, ...]:
    """The checkpoint, and those of modules that go onto it. Raises CheckpointError."""
    paths = (source,) if isinstance(source, (str, os.PathLike)) else tuple(source)
    return tuple(open_checkpoint(path) for path in paths)


def as_stored(files: Sequence[Checkpoint]) -> Checkpoint:
    """One checkpoint of tensors as the files hold them."""
    return joined(files)


def as_weights(files: Sequence[Checkpoint]) -> Checkpoint:
    """One checkpoint of weights. Raises ArgsError where a layer cannot be dequantised."""
    try:
        return joined([unpacked(file) for file in files])
    except GeometryError as error:
        raise ArgsError(str(error)) from error


def as_converted(files: Sequence[Checkpoint], dtype: str | None) -> Checkpoint:
    """The checkpoint as it is converted. Raises ArgsError.

    What is kept as it is stored must be read from one file as it is from several: each says for
    itself alone how its weights are packed.
    """
    if dtype is not None:
        return as_weights(files)
    stored = as_stored(files)
    if len(files) > 1 and _packings(as_weights([stored])) != _packings(as_weights(files)):
        raise ArgsError(
            f"{stored.label} say in ways that exclude each other how their weights are packed, and "
            "one file has one way: give a dtype, in which both are written"
        )
    return stored


def _packings(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """How each weight is packed, and in which tensors."""
    packed = {key: t.packing for key, t in checkpoint.tensors.items()}
    return {
        key: () if packing is None else (packing.format, *(part.name for part in packing.parts))
        for key, packing in packed.items()
    }


def source_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str | None, Source]]:
    """What goes into the new file, each with its key (None: no part of the transformer), in the
    order of the source's files.

    A packed weight stands where its first tensor lies.
    """
    own = {(tensor.shard, tensor.name): key for key, tensor in checkpoint.tensors.items()}
    beside = set(checkpoint.left_out)
    for shard, header in enumerate(checkpoint.headers):
        for tensor in header.tensors:
            key = own.get((shard, tensor.name))
            if key is not None:
                stored = checkpoint.tensors[key]
                yield key, (shard, tensor if stored.packing is None else stored)
            elif tensor.name in beside and not is_padding(tensor.name):
                yield None, (shard, tensor)


def packing_of(tensor: SourceTensor) -> Packing | None:
    return tensor.packing if isinstance(tensor, StoredTensor) else None


def new_name(checkpoint: Checkpoint, key: str | None, where: Source) -> str:
    """The name of the tensor in the new file: its own, of a module's that which a model has."""
    shard, tensor = where
    if key is not None and checkpoint.modules_from is not None and shard >= checkpoint.modules_from:
        return checkpoint.prefix + key
    packing = packing_of(tensor)
    if key is None or packing is None:
        return tensor.name
    return tensor.name.removesuffix(packing.parts[0].key) + key


def decoded(
    packing: Packing,
    shape: tuple[int, ...],
    dtype: str,
    read: Callable[[StoredTensor, bytearray], None],
) -> torch.Tensor:
    """The weight in memory of its own; `read` fills a buffer with the bytes of a stored tensor."""
    stored = []
    for part in packing.parts:
        buffer = bytearray(part.nbytes)
        read(part, buffer)
        flat = torch.frombuffer(buffer, dtype=torch_dtype(part.dtype))
        stored.append(flat.view(part.shape))
    return decoded_on_host(packed_form(packing, stored_leaf(dtype, shape)), stored)


def flat_bytes(weight: torch.Tensor) -> memoryview:
    """The weight's bytes, to be sliced."""
    numbers: Any = weight.flatten().view(torch.uint8).numpy()
    return memoryview(numbers)
