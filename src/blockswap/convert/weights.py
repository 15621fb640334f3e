"""Weights: this module owns what of a source goes into the new file, and decoding what is packed.

Without a dtype every tensor goes along as it is. With one, a quantised checkpoint becomes a plain
one: each packed weight is one tensor, and what only its decoding needs is left out. A weight is
decoded whole, by the same steps that decode it when it is streamed.
"""

from collections.abc import Callable
from typing import Any

import torch

from ..decode.formats import packed_form
from ..decode.unit_decoding import decoded_on_host, stored_leaf
from ..errors import ArgsError, GeometryError
from ..layout.checkpoint import Checkpoint, Packing, StoredTensor
from ..layout.formats import unpacked
from ..layout.header import FileTensor
from ..layout.prefix import is_padding
from ..store.leaves import torch_dtype

SourceTensor = FileTensor | StoredTensor
Source = tuple[int, SourceTensor]  # the shard, and the tensor in it


def as_weights(checkpoint: Checkpoint, dtype: str | None) -> Checkpoint:
    """The checkpoint as it is converted. Raises ArgsError where a layer cannot be dequantised."""
    if dtype is None:
        return checkpoint
    try:
        return unpacked(checkpoint)
    except GeometryError as error:
        raise ArgsError(str(error)) from error


def source_tensors(checkpoint: Checkpoint) -> list[Source]:
    """What goes into the new file, in the order of the source's files.

    A packed weight stands where its first tensor lies, under the name of a plain weight.
    """
    packed = {t.name: t for t in checkpoint.tensors.values() if t.packing is not None}
    own = {tensor.name for tensor in checkpoint.tensors.values()}
    kept = own | set(checkpoint.left_out)
    found: list[Source] = []
    for shard, header in enumerate(checkpoint.headers):
        for tensor in header.tensors:
            if is_padding(tensor.name) or tensor.name not in kept:
                continue
            found.append((shard, packed.get(tensor.name, tensor)))
    return found


def packing_of(tensor: SourceTensor) -> Packing | None:
    return tensor.packing if isinstance(tensor, StoredTensor) else None


def new_name(checkpoint: Checkpoint, tensor: SourceTensor) -> str:
    """The name of the tensor in the new file."""
    if not isinstance(tensor, StoredTensor) or tensor.packing is None:
        return tensor.name
    first = tensor.packing.parts[0]
    return tensor.name.removesuffix(first.key) + tensor.key


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
