"""The safetensors header: this module owns reading one file's header and refusing every lie in it.

    byte 0         8                    data_start                            file_bytes
    | length (u64) | JSON, length bytes | tensor | tensor | ... | tensor      |

The gate is as strict as the reference library: tensors cover the data without a gap, an overlap or
a trailing byte. On top of that duplicate keys, element types under one byte (F4, F6) and structure
inside fields that the format does not know are refused. What passed is trusted from then on.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import HeaderError
from .dtypes import ITEM_BYTES, SAFETENSORS_CODES
from .foreign import SNIFFED_BYTES, foreign_format
from .quoting import quote
from .stamp import FileStamp, stamp_of
from .strictjson import JsonRefused, parse_object

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # safetensors' own cap
_STATED_LIMIT = 2**32  # a larger number was never meant as a header's length
METADATA_KEY = "__metadata__"
_ADDRESS_LIMIT = 2**64
_AGAIN = "download or copy the file again"


@dataclass(frozen=True, slots=True)
class FileTensor:
    """One tensor of a file: `dtype` as torch spells it, `offset` and `nbytes` in bytes.

    `offset` counts from the first byte of the file. A tensor of GGML's blocks (`block` names their
    type) is bytes, one row a block; `weight_shape` is then the shape of the numbers in them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    block: str = ""
    weight_shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FileHeader:
    """A validated header. `tensors` are in file order; `path` is absolute."""

    path: Path
    file_bytes: int
    data_start: int
    metadata: Mapping[str, str]
    tensors: tuple[FileTensor, ...]
    stamp: FileStamp


def read_header(path: str | os.PathLike[str]) -> FileHeader:
    """Reads and validates the header of one safetensors file; no tensor data is read.

    Raises HeaderError: one sentence that names the file, the fact that broke, and what to do.
    """
    where = Path(os.path.abspath(path))
    if "\0" in str(where):
        raise HeaderError(f"{quote(str(where))} has a zero byte in its name: check the path")
    raw, stamp = _read_raw(where)
    try:
        top = parse_object(raw)
    except JsonRefused as error:
        raise _refused_json(where, error) from error
    data_start = LENGTH_BYTES + len(raw)
    metadata = _metadata(where, top.pop(METADATA_KEY, None))
    data_bytes = stamp.size - data_start
    tensors = sorted(
        (_tensor(where, name, entry, data_start, data_bytes) for name, entry in top.items()),
        key=lambda tensor: (tensor.offset, tensor.offset + tensor.nbytes),
    )
    _check_cover(where, tensors, data_start, stamp.size)
    return FileHeader(where, stamp.size, data_start, metadata, tuple(tensors), stamp)


def _read_raw(path: Path) -> tuple[bytes, FileStamp]:
    """The bytes of the JSON part, and the file's stamp."""
    with open_regular(path) as (fd, stamp):
        length = _length(path, read_exactly(fd, LENGTH_BYTES), stamp.size)
        raw = read_exactly(fd, length)
    if len(raw) < length:
        raise HeaderError(
            f"{path} became shorter while its header was read "
            f"({len(raw):,} of {length:,} bytes): wait until it is written and open it again"
        )
    return raw, stamp


@contextmanager
def open_regular(path: Path, kind: str = ".safetensors") -> Iterator[tuple[int, FileStamp]]:
    """The descriptor of a regular file, to be read from its begin, and the file's stamp.

    Raises HeaderError for what is none, and for every OSError inside.
    """
    try:
        # A stat first: opening a FIFO would wait for a writer, opening a device may do anything.
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise HeaderError(f"{path} is a folder: give a {kind} file")
        if not stat.S_ISREG(mode):
            raise HeaderError(f"{path} is not a regular file: give a {kind} file")
        with open(path, "rb", buffering=0) as file:
            yield file.fileno(), stamp_of(os.fstat(file.fileno()))
    except FileNotFoundError as error:
        raise HeaderError(f"{path} is not there: check the path") from error
    except OSError as error:
        raise HeaderError(
            f"{path} cannot be read ({error.strerror}): check its permissions and its disk"
        ) from error


def read_exactly(fd: int, nbytes: int) -> bytes:
    """`nbytes` bytes, or fewer where the file ends."""
    parts = []
    while nbytes > 0 and (part := os.read(fd, nbytes)):
        parts.append(part)
        nbytes -= len(part)
    return b"".join(parts)


def _length(path: Path, prefix: bytes, file_bytes: int) -> int:
    if not prefix:
        raise HeaderError(f"{path} is empty: {_AGAIN}")
    if len(prefix) < LENGTH_BYTES:
        raise HeaderError(
            f"{path} has {file_bytes:,} bytes, too few for a safetensors file: {_AGAIN}"
        )
    length = int.from_bytes(prefix, "little")
    if LENGTH_BYTES + length <= file_bytes and length <= MAX_HEADER_BYTES:
        return length
    head = _head(path)
    # Where a header's text follows, a length that spells some magic number is a length.
    what = None if head[LENGTH_BYTES:].startswith(b"{") else foreign_format(head)
    if what is not None:
        raise HeaderError(f"{path} is no safetensors file but {what}")
    if length > _STATED_LIMIT:
        raise HeaderError(
            f"{path} does not begin as a safetensors file does: it is another kind of file or "
            f"damaged, give a model's file or {_AGAIN}"
        )
    if length > MAX_HEADER_BYTES:
        raise HeaderError(
            f"{path} says its header has {length:,} bytes, more than safetensors allows "
            f"({MAX_HEADER_BYTES:,}): it is no safetensors file or is damaged, {_AGAIN}"
        )
    raise HeaderError(
        f"{path} says its header has {length:,} bytes, but the file ends after "
        f"{file_bytes:,}: it is cut short, {_AGAIN}"
    )


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(SNIFFED_BYTES)


def _refused_json(path: Path, error: JsonRefused) -> HeaderError:
    if what := foreign_format(_head(path)):
        return HeaderError(f"{path} is no safetensors file but {what}")
    return HeaderError(f"{path}: the header {error}: it is damaged or forged, {_AGAIN}")


def _lie(path: Path, name: str, fact: str) -> HeaderError:
    return HeaderError(f"{path}: tensor {quote(name)} {fact}: the header is damaged, {_AGAIN}")


def _metadata(path: Path, entry: object) -> Mapping[str, str]:
    if entry is None:
        return MappingProxyType({})
    if not isinstance(entry, dict):
        raise HeaderError(
            f"{path}: {METADATA_KEY} is no object of texts: the header is damaged, {_AGAIN}"
        )
    for key, value in entry.items():
        if not isinstance(value, str):
            raise HeaderError(
                f"{path}: {METADATA_KEY} entry {quote(key)} is no text: "
                f"the header is damaged, {_AGAIN}"
            )
    return MappingProxyType(entry)


def _tensor(path: Path, name: str, entry: Any, data_start: int, data_bytes: int) -> FileTensor:
    if not isinstance(entry, dict):
        raise _lie(path, name, "is not described by an object")
    for field in ("dtype", "shape", "data_offsets"):
        if field not in entry:
            raise _lie(path, name, f"has no {quote(field)}")
    for field, value in entry.items():
        if field not in ("dtype", "shape", "data_offsets") and isinstance(value, (dict, list)):
            raise _lie(path, name, f"has structure in the unknown field {quote(field)}")
    code = entry["dtype"]
    if not isinstance(code, str) or code not in SAFETENSORS_CODES:
        raise HeaderError(
            f"{path}: tensor {quote(name)} has the element type {quote(code)}, which is not one of "
            f"{', '.join(SAFETENSORS_CODES)}: use a checkpoint stored in one of those"
        )
    dtype = SAFETENSORS_CODES[code]
    shape = _whole_numbers(path, name, "shape", entry["shape"])
    offsets = _whole_numbers(path, name, "data_offsets", entry["data_offsets"])
    if len(offsets) != 2:
        raise _lie(path, name, f"has {len(offsets)} data_offsets instead of 2")
    begin, end = offsets
    if begin > end:
        raise _lie(path, name, f"begins at data byte {begin:,} and ends before it at {end:,}")
    if end > data_bytes:
        raise HeaderError(
            f"{path}: tensor {quote(name)} ends at data byte {end:,}, but the file holds "
            f"{data_bytes:,}: it is cut short, {_AGAIN}"
        )
    nbytes = _size(path, name, shape, ITEM_BYTES[dtype])
    if nbytes != end - begin:
        raise _lie(
            path,
            name,
            f"({code} {quote(list(shape))}) needs {nbytes:,} bytes and has {end - begin:,}",
        )
    return FileTensor(name, dtype, shape, data_start + begin, nbytes)


def _whole_numbers(path: Path, name: str, field: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _lie(path, name, f"has a {field} that is no list")
    for item in value:
        # bool is an int to Python; type() keeps True from passing for 1.
        if type(item) is not int or item < 0:
            raise _lie(path, name, f"has {quote(item)} in its {field}, which is no whole number")
    return tuple(value)


def _size(path: Path, name: str, shape: Iterable[int], item_bytes: int) -> int:
    """Bytes of a tensor, multiplied in the order in which the reference library checks overflow."""
    nbytes = 1
    for factor in shape:
        nbytes *= factor
        if nbytes >= _ADDRESS_LIMIT:
            break
    # The reference counts in bits.
    if nbytes * item_bytes * 8 >= _ADDRESS_LIMIT:
        raise _lie(path, name, "is larger than any address")
    return nbytes * item_bytes


def _check_cover(path: Path, tensors: list[FileTensor], data_start: int, file_bytes: int) -> None:
    """Tensors, sorted by offset, must follow each other to the end of the file."""
    end, before = data_start, "header"
    for tensor in tensors:
        if tensor.offset < end:
            raise _lie(
                path, tensor.name, f"overlaps {quote(before)} by {end - tensor.offset:,} bytes"
            )
        if tensor.offset > end:
            raise _lie(
                path, tensor.name, f"leaves a hole of {tensor.offset - end:,} bytes before it"
            )
        end, before = tensor.offset + tensor.nbytes, tensor.name
    if end != file_bytes:
        raise HeaderError(
            f"{path} holds {file_bytes - end:,} bytes behind its last tensor: "
            f"two files were joined or the header is damaged, {_AGAIN}"
        )
