"""Verification: this module owns comparing a converted file, byte for byte, with its source."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..errors import ArgsError, GeometryError
from ..layout.checkpoint import STATED_PREFIX, Checkpoint, checkpoint_of
from ..layout.formats import quantiser_keys, unpacked
from ..layout.geometry import infer_geometry
from ..layout.header import FileHeader, FileTensor, read_header
from ..layout.prefix import is_padding
from ..layout.quoting import quote
from ..layout.shards import one_file
from ..layout.stamp import Stamped
from ..layout.writing import Meter, Progress
from ..paths import input_path
from ..store.file_io import StreamedFile
from .cast import PieceReader, pieces
from .eight_bits import Eighth, new_tensors
from .weights import AnySources, SourceTensor, as_stored, as_weights, open_sources, packing_of

AnySource = tuple[int, SourceTensor | Eighth]


@dataclass(frozen=True, slots=True)
class Verified:
    """What a comparison found: `differences` is one sentence each, empty where all is equal."""

    tensors: int
    nbytes: int
    differences: tuple[str, ...]


def verify_pair(
    source: AnySources,
    target: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> Verified:
    """Compares every tensor of file `target` with a cast of the same tensor of `source`, and the
    model that both are read as: heads, VACE positions and eps are no tensors.

    `progress` is called with bytes compared and bytes in all. Raises CheckpointError where one of
    them cannot be read, or where the source is refused for what its config.json says.
    """
    path = input_path(target)
    header = read_header(path)
    made = checkpoint_of(one_file(path), (header,))
    sources = open_sources(source)
    checkpoint = as_stored(sources)
    scaled, alike = bool(quantiser_keys(made)), _tensors(checkpoint) == _tensors(made)
    eight_bits = scaled and not alike
    if not alike:
        # Both are compared as weights: with what the source is dequantised, or quantised, to.
        checkpoint = as_weights(sources)
    with open_files(checkpoint.headers) as files:
        reader = PieceReader(files)
        meter = Meter(header.file_bytes - header.data_start, progress)
        told = (*_different_readings(checkpoint, made), *odd_padding(checkpoint, reader))
        found = compare(sources_of(checkpoint, eight_bits=eight_bits), header, reader, meter)
    return replace(found, differences=(*told, *found.differences))


def _tensors(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What the tensors of one file of all of them are, by name."""
    sources = sources_of(checkpoint, eight_bits=False)
    return {name: (tensor.dtype, tensor.shape) for name, (_, tensor) in sources.items()}


def _different_readings(source: Checkpoint, made: Checkpoint) -> Iterator[str]:
    """Where a reader takes another model from the new file than from its source."""
    path = made.paths[0]
    try:
        expected = infer_geometry(unpacked(source))
    except GeometryError:
        if source.config is not None:
            raise
        # Not whole, or another's: then what they say of themselves must be the same.
        said, other = source.metadata, made.metadata
        for key in sorted(said.keys() | other.keys()):
            if key.startswith(STATED_PREFIX) and said.get(key) != other.get(key):
                yield (
                    f"{path} states {key} = {quote(other.get(key))}, "
                    f"the source {quote(said.get(key))}"
                )
        return
    try:
        found = infer_geometry(unpacked(made))
    except GeometryError as error:
        yield f"{path} is not read as its source is: {error}"
        return
    for one in fields(found):
        here, there = getattr(found, one.name), getattr(expected, one.name)
        if one.compare and here != there:
            yield f"{path} is read with {one.name} = {quote(here)}, the source with {quote(there)}"


def odd_padding(checkpoint: Checkpoint, reader: PieceReader) -> Iterator[str]:
    """Tensors of the source that are called as padding is and hold something: they would go."""
    for shard, header in enumerate(checkpoint.headers):
        for tensor in header.tensors:
            spans = pieces(tensor.dtype, tensor.dtype, math.prod(tensor.shape))
            if is_padding(tensor.name) and any(
                any(reader.read((shard, tensor), span, tensor.dtype)) for span in spans
            ):
                yield (
                    f"{checkpoint.label} holds {quote(tensor.name)}, called as the padding of a "
                    "converted file is, and not zero: rename or remove it"
                )


@contextmanager
def open_files(headers: Sequence[Stamped]) -> Iterator[list[StreamedFile]]:
    """The files of these headers, open for reading that leaves no traces in the page cache."""
    with ExitStack() as opened:
        files = []
        for header in headers:
            files.append(StreamedFile(header, direct=False))
            opened.callback(files[-1].close)
        yield files


def sources_of(checkpoint: Checkpoint, *, eight_bits: bool) -> dict[str, AnySource]:
    """What each tensor of the new file is made of, by its name there."""
    made = new_tensors(checkpoint, eight_bits=eight_bits)
    return {tensor.name: tensor.source for tensor in made}


def compare(
    wanted: Mapping[str, AnySource], header: FileHeader, reader: PieceReader, meter: Meter
) -> Verified:
    """Compares a file with what its tensors are made of, whose files are open already."""
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
    where: AnySource, tensor: FileTensor, reader: PieceReader, back: PieceReader
) -> Iterator[str]:
    source = where[1]
    name = quote(tensor.name)
    if source.shape != tensor.shape:
        yield f"{name} is {list(tensor.shape)}, in the source {list(source.shape)}"
        return
    made = isinstance(source, Eighth) or packing_of(source) is not None
    whole = not made and not _is_float(source.dtype)
    if whole == _is_float(tensor.dtype):
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
