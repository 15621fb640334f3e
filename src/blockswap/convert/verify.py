"""Verification: this module owns comparing a converted file, byte for byte, with its source."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArgsError
from ..layout.checkpoint import Checkpoint, open_checkpoint
from ..layout.header import FileHeader, FileTensor, read_header
from ..layout.prefix import is_padding
from ..layout.quoting import quote
from ..layout.stamp import Stamped
from ..layout.writing import Meter, Progress
from ..store.file_io import StreamedFile
from .cast import PieceReader, pieces


@dataclass(frozen=True, slots=True)
class Verified:
    """What a comparison found: `differences` is one sentence each, empty where all is equal."""

    tensors: int
    nbytes: int
    differences: tuple[str, ...]


def verify_pair(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> Verified:
    """Compares every tensor of file `target` with a cast of the same tensor of `source`.

    `progress` is called with bytes compared and bytes in all. Raises CheckpointError where one of
    them cannot be read.
    """
    checkpoint, header = open_checkpoint(source), read_header(target)
    with open_files(checkpoint.headers) as files:
        reader = PieceReader(files)
        meter = Meter(header.file_bytes - header.data_start, progress)
        return compare(checkpoint, header, reader, meter)


@contextmanager
def open_files(headers: Sequence[Stamped]) -> Iterator[list[StreamedFile]]:
    """The files of these headers, open for reading that leaves no traces in the page cache."""
    with ExitStack() as opened:
        files = []
        for header in headers:
            files.append(StreamedFile(header, direct=False))
            opened.callback(files[-1].close)
        yield files


def compare(
    checkpoint: Checkpoint, header: FileHeader, reader: PieceReader, meter: Meter
) -> Verified:
    """As `verify_pair`, with the source's files open already."""
    wanted = {
        tensor.name: (shard, tensor)
        for shard, one in enumerate(checkpoint.headers)
        for tensor in one.tensors
        if not is_padding(tensor.name)
    }
    found = {tensor.name: tensor for tensor in header.tensors}
    differences = list(_different_names(wanted, found, header.path))
    with open_files([header]) as (target,):
        back = PieceReader([target])
        for tensor in header.tensors:
            if tensor.name in wanted:
                differences += _different(wanted[tensor.name], tensor, reader, back)
            elif is_padding(tensor.name):
                differences += _not_zero(tensor, back)
            meter.add(tensor.nbytes)
        target.check_unchanged()
    return Verified(len(wanted), header.file_bytes, tuple(differences))


def _different_names(
    wanted: Mapping[str, object], found: Mapping[str, object], path: Path
) -> Iterator[str]:
    for name in wanted:
        if name not in found:
            yield f"{path} lacks {quote(name)}"
    for name in found:
        if name not in wanted and not is_padding(name):
            yield f"{path} holds {quote(name)}, which the source has not"


def _different(
    where: tuple[int, FileTensor], tensor: FileTensor, reader: PieceReader, back: PieceReader
) -> Iterator[str]:
    source = where[1]
    name = quote(tensor.name)
    if source.shape != tensor.shape:
        yield f"{name} is {list(tensor.shape)}, in the source {list(source.shape)}"
        return
    if _is_float(source.dtype) != _is_float(tensor.dtype):
        yield f"{name} is {tensor.dtype}, in the source {source.dtype}"
        return
    for span in pieces(source.dtype, tensor.dtype, math.prod(tensor.shape)):
        try:
            expected = reader.read(where, span, tensor.dtype)
        except ArgsError as error:
            yield str(error)
            return
        if expected != back.read((0, tensor), span, tensor.dtype):
            yield f"{name} differs from a cast of the source, from element {span[0]:,} on"
            return


def _not_zero(tensor: FileTensor, back: PieceReader) -> Iterator[str]:
    for span in pieces(tensor.dtype, tensor.dtype, math.prod(tensor.shape)):
        if any(back.read((0, tensor), span, tensor.dtype)):
            yield f"{quote(tensor.name)} is padding and not zero"
            return


def _is_float(dtype: str) -> bool:
    return "float" in dtype
