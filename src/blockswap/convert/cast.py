"""Pieces: this module owns reading a tensor in its new dtype, a few megabytes at a time.

A piece is cast as torch's `.to` casts (round to nearest, ties to even), always with the same
boundaries: what is written, written again after an interrupt, and compared, is the same bytes.
"""

from collections.abc import Iterator, Sequence

import torch

from ..errors import ArgsError, ReadError
from ..layout.checkpoint import Packing, StoredTensor
from ..layout.dtypes import ITEM_BYTES
from ..store.file_io import StreamedFile
from ..store.leaves import torch_dtype
from .eight_bits import Eighth, Quantiser
from .weights import Source, SourceTensor, decoded, flat_bytes, packing_of

PIECE_BYTES = 16 * 1024 * 1024


def pieces(source: str, target: str, count: int, *, start: int = 0) -> Iterator[tuple[int, int]]:
    """(first element, elements) of each piece of a tensor of `count` elements, from `start` on.

    Neither form of a piece is larger than `PIECE_BYTES`.
    """
    step = max(1, PIECE_BYTES // max(ITEM_BYTES[source], ITEM_BYTES[target]))
    for first in range(start, count, step):
        yield first, min(step, count - first)


class PieceReader:
    """Reads pieces of tensors from open files into two buffers that it uses over and over."""

    def __init__(self, files: Sequence[StreamedFile]) -> None:
        self._files = files
        self._decoded: tuple[tuple[str, str], memoryview] | None = None  # of the last packed weight
        self._numbers: tuple[str, memoryview] | None = None  # of the last weight that became fp8
        self._scales: dict[str, memoryview] = {}  # four bytes each: of all of them
        self.quantiser = Quantiser()
        self._stored = bytearray(PIECE_BYTES)
        self._cast = bytearray(PIECE_BYTES)

    def read(
        self, where: tuple[int, SourceTensor | Eighth], span: tuple[int, int], dtype: str
    ) -> memoryview:
        """Elements `span` = (first, count) of a tensor, as `dtype`; valid until the next call.

        Raises ReadError, and ArgsError where a finite value has no finite form in `dtype`.
        """
        shard, tensor = where
        first, count = span
        if isinstance(tensor, Eighth):
            size = ITEM_BYTES[dtype]
            return self._eighth(shard, tensor)[first * size : (first + count) * size]
        packing = packing_of(tensor)
        if packing is not None:
            size = ITEM_BYTES[dtype]
            return self._weight(tensor, packing, dtype)[first * size : (first + count) * size]
        item_bytes = ITEM_BYTES[tensor.dtype]
        stored = memoryview(self._stored)[: count * item_bytes]
        _read(self._files[shard], tensor, tensor.offset + first * item_bytes, stored)
        if tensor.dtype == dtype:
            return stored
        values = torch.frombuffer(self._stored, dtype=torch_dtype(tensor.dtype), count=count)
        result = torch.frombuffer(self._cast, dtype=torch_dtype(dtype), count=count)
        result.copy_(values)
        _check_finite(tensor.name, values, result, dtype)
        return memoryview(self._cast)[: count * ITEM_BYTES[dtype]]

    def _eighth(self, shard: int, tensor: Eighth) -> memoryview:
        """Bytes of a tensor that is made by quantising a weight.

        Scales come after all numbers of their unit, so they are kept until they are asked for.
        """
        if tensor.weight is None:
            return memoryview(b"")
        name = tensor.weight.name
        if tensor.part == "scale" and name in self._scales:
            return self._scales[name]
        if self._numbers is None or self._numbers[0] != name:
            self._numbers = None
            weight = self._whole((shard, tensor.weight))
            numbers, self._scales[name] = self.quantiser.run(name, weight)
            self._numbers = name, numbers
        return self._scales[name] if tensor.part == "scale" else self._numbers[1]

    def _whole(self, where: Source) -> torch.Tensor:
        """A weight in fp32, in memory of its own."""
        shard, tensor = where
        packing = packing_of(tensor)
        if packing is not None:
            return decoded(packing, tensor.shape, "float32", self._fill)
        buffer = bytearray(tensor.nbytes)
        _read(self._files[shard], tensor, tensor.offset, memoryview(buffer))
        stored = torch.frombuffer(buffer, dtype=torch_dtype(tensor.dtype))
        return stored.to(torch.float32).view(tensor.shape)

    def _weight(self, tensor: SourceTensor, packing: Packing, dtype: str) -> memoryview:
        """All bytes of a packed weight, decoded; kept until another one is asked for."""
        key = (tensor.name, dtype)
        if self._decoded is None or self._decoded[0] != key:
            self._decoded = None
            self._decoded = key, flat_bytes(decoded(packing, tensor.shape, dtype, self._fill))
        return self._decoded[1]

    def _fill(self, part: StoredTensor, buffer: bytearray) -> None:
        _read(self._files[part.shard], part, part.offset, memoryview(buffer))


def _read(file: StreamedFile, tensor: SourceTensor, offset: int, target: memoryview) -> None:
    try:
        file.read(offset, target, len(target))
    except ReadError:
        raise
    except OSError as error:
        raise ReadError(
            f"reading {tensor.name} from {file.path} at byte {offset} failed: "
            f"{error.strerror or error}"
        ) from error


def _check_finite(name: str, values: torch.Tensor, result: torch.Tensor, dtype: str) -> None:
    if bool(torch.isfinite(result).all()):
        return
    exact = values.to(torch.float64)  # which holds every value of every other type
    lost = torch.isfinite(exact) & ~torch.isfinite(result)
    if bool(lost.any()):
        value = exact[lost][0].item()
        raise ArgsError(
            f"{name} holds {value:g}, more than {dtype} can hold: choose bfloat16 or float32"
        )
