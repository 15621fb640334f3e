"""The GGUF header: this module owns reading one GGUF file's header and refusing every lie in it.

    | GGUF, version | counts | key, type, value ... | name, shape, type, offset ... | tensors |

Nothing is believed before it is compared with the bytes that are there: a length is no allocation,
a count no loop, until the file could hold it. Shapes are the other way round than in torch.
"""

import math
import os
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from ..errors import HeaderError
from .dtypes import ITEM_BYTES
from .foreign import SNIFFED_BYTES, foreign_format
from .ggml import BLOCKS, OTHERS, PLAIN
from .header import FileHeader, FileTensor, open_regular, read_exactly
from .quoting import quote
from .slab import align_up
from .stamp import FileStamp

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 100_000_000
MAX_AXES = 8
_MOST_NUMBERS = 1 << 60
_ALIGNMENT_KEY = "general.alignment"
_SHAPE_KEY = "comfy.gguf.orig_shape."  # where a tool had to store a shape of more axes
_READ_BYTES = 1 << 18
_KEPT_TEXT = 65_536
_KEPT_NUMBERS = 64
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
            11: "<q", 12: "<d"}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_AGAIN = "the header is damaged, download or copy the file again"

_List = tuple[str | int | float, ...]
_Value = str | int | float | _List | None


def is_gguf(path: Path) -> bool:
    """Whether a file is one by its name."""
    return path.name.lower().endswith(SUFFIX)


def read_gguf_header(path: str | os.PathLike[str]) -> FileHeader:
    """Reads and validates the header of one GGUF file; no tensor data is read.

    Raises HeaderError, one sentence.
    """
    where = Path(path).absolute()
    with open_regular(where, SUFFIX) as (fd, stamp):
        cursor, tensor_count, pair_count = _begin(where, fd, stamp)
        values = _read_values(cursor, pair_count)
        alignment = _alignment(cursor, values)
        entries = [_read_entry(cursor) for _ in range(tensor_count)]
    data_start = align_up(cursor.at, alignment)
    place = _Place(data_start, alignment, values)
    found = [_tensor(cursor, entry, place) for entry in entries]
    tensors = _placed(cursor, found, data_start, alignment)
    metadata = {key: str(value) for key, value in values.items()
                if not isinstance(value, tuple) and value is not None}  # fmt: skip
    return FileHeader(where, stamp.size, data_start, MappingProxyType(metadata), tensors, stamp)


def read_gguf_lists(path: str | os.PathLike[str], keys: Collection[str]) -> dict[str, _List]:
    """The lists of those `keys` that the file's header has, whole, however long they are.

    Raises HeaderError, one sentence.
    """
    where = Path(path).absolute()
    with open_regular(where, SUFFIX) as (fd, stamp):
        cursor, _, pair_count = _begin(where, fd, stamp)
        values = _read_values(cursor, pair_count, keys)
    return {key: found for key in keys if isinstance(found := values.get(key), tuple)}


@dataclass(slots=True)
class _Cursor:
    """Where the header is being read, and how far it may go."""

    path: Path
    fd: int
    stamp: FileStamp
    at: int = 0
    _buffer: bytes = field(default=b"", repr=False)
    _start: int = 0

    def take(self, nbytes: int, what: str) -> bytes:
        """The next bytes of the header."""
        end = self.at + nbytes
        if end > self.stamp.size or end > MAX_HEADER_BYTES:
            raise self.lie(f"says that {what} takes {nbytes:,} bytes at byte {self.at:,}, beyond "
                           f"{'its end' if end > self.stamp.size else 'any header'}")  # fmt: skip
        if not self._start <= self.at <= end <= self._start + len(self._buffer):
            self._start = os.lseek(self.fd, self.at, os.SEEK_SET)
            self._buffer = read_exactly(self.fd, max(nbytes, _READ_BYTES))
        found = self._buffer[self.at - self._start : end - self._start]
        if len(found) < nbytes:
            raise self.lie("became shorter while its header was read")
        self.at = end
        return found

    def skip(self, nbytes: int, what: str) -> None:
        end = self.at + nbytes
        if end > self.stamp.size or end > MAX_HEADER_BYTES:
            self.take(nbytes, what)
        self.at = end

    def number(self, code: str, what: str) -> int:
        (value,) = struct.unpack(code, self.take(struct.calcsize(code), what))
        return int(value)

    def count(self, what: str, least_bytes: int) -> int:
        """A count of things of which each takes at least so many bytes."""
        value = self.number("<Q", f"the number of {what}")
        if value * least_bytes > min(self.stamp.size, MAX_HEADER_BYTES) - self.at:
            raise self.lie(f"says that it has {value:,} {what}, more than it has bytes for")
        return value

    def text(self, what: str) -> str:
        data = self.take(self.number("<Q", f"the length of {what}"), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.lie(f"has {what} that is not UTF-8") from error

    def lie(self, fact: str) -> HeaderError:
        return HeaderError(f"{self.path} {fact}: {_AGAIN}")


def _begin(path: Path, fd: int, stamp: FileStamp) -> tuple[_Cursor, int, int]:
    """A cursor behind the head of a header, and its counts of tensors and entries."""
    cursor = _Cursor(path, fd, stamp)
    _check_magic(cursor)
    return cursor, cursor.count("tensors", 33), cursor.count("entries", 13)


def _check_magic(cursor: _Cursor) -> None:
    head = read_exactly(cursor.fd, SNIFFED_BYTES)
    if not head.startswith(MAGIC):
        what = foreign_format(head)
        raise HeaderError(
            f"{cursor.path} is no GGUF file" + (f" but {what}" if what else ": give one")
        )
    cursor.take(4, "the magic")
    version = cursor.number("<I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = f"version {version}" if swapped not in VERSIONS else "of a big-endian machine"
        raise HeaderError(
            f"{cursor.path} is a GGUF file {what}, and versions {VERSIONS[0]} and {VERSIONS[1]} of "
            "little-endian machines are read: convert it with the gguf package"
        )


def _read_values(cursor: _Cursor, count: int, whole: Collection[str] = ()) -> Mapping[str, _Value]:
    """All entries; of long lists nothing is kept, but for those that `whole` names."""
    values: dict[str, _Value] = {}
    for _ in range(count):
        key = cursor.text("a key")
        if key in values:
            raise cursor.lie(f"says {quote(key)} twice")
        values[key] = _read_value(cursor, key, cursor.number("<I", "a type"), key in whole)
    return values


def _read_value(cursor: _Cursor, key: str, kind: int, whole: bool) -> _Value:
    """A number or text; of a list its numbers where they are few or it is wanted, else nothing."""
    if kind in _NUMBERS:
        code = _NUMBERS[kind]
        (value,) = struct.unpack(code, cursor.take(struct.calcsize(code), quote(key)))
        return value  # type: ignore[no-any-return]
    if kind == _TEXT:
        text = cursor.text(quote(key))
        return text if len(text) <= _KEPT_TEXT else None
    if kind != _ARRAY:
        raise cursor.lie(f"gives {quote(key)} the type {kind}, which there is not")
    inner = cursor.number("<I", "a type")
    if inner == _TEXT:
        return _read_texts(cursor, key, whole)
    if inner not in _NUMBERS:
        raise cursor.lie(f"has lists of type {inner} in {quote(key)}, which no reader needs")
    code = _NUMBERS[inner]
    length = cursor.count(f"numbers in {quote(key)}", struct.calcsize(code))
    if length > _KEPT_NUMBERS and not whole:
        cursor.skip(length * struct.calcsize(code), quote(key))
        return None
    data = cursor.take(length * struct.calcsize(code), quote(key))
    return tuple(value for (value,) in struct.iter_unpack(code, data))


def _read_texts(cursor: _Cursor, key: str, whole: bool) -> _Value:
    texts: list[str] = []
    for _ in range(cursor.count(f"texts in {quote(key)}", 8)):
        if whole:
            texts.append(cursor.text(f"a text in {quote(key)}"))
        else:
            cursor.skip(cursor.number("<Q", "the length of a text"), f"a text in {quote(key)}")
    return tuple(texts) if whole else None


def _alignment(cursor: _Cursor, values: Mapping[str, _Value]) -> int:
    value = values.get(_ALIGNMENT_KEY, 32)
    if type(value) is not int or not 8 <= value <= 1 << 20 or value & (value - 1):
        raise cursor.lie(f"states an alignment of {quote(value)}, which is no power of two from 8")
    return value


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor as the header tells of it; `offset` counts from where the data starts."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _read_entry(cursor: _Cursor) -> _Entry:
    name = cursor.text("a tensor's name")
    axes = cursor.number("<I", "a number of axes")
    if not 1 <= axes <= MAX_AXES:
        raise cursor.lie(f"gives tensor {quote(name)} {axes:,} axes, not 1 to {MAX_AXES}")
    sizes = struct.unpack(f"<{axes}Q", cursor.take(8 * axes, "a shape"))
    kind, offset = cursor.number("<I", "a type"), cursor.number("<Q", "an offset")
    if not 0 < math.prod(sizes) < _MOST_NUMBERS:
        raise cursor.lie(f"gives tensor {quote(name)} the shape {quote(list(sizes[::-1]))}")
    return _Entry(name, tuple(reversed(sizes)), kind, offset)


def _placed(
    cursor: _Cursor, tensors: list[FileTensor], data_start: int, alignment: int
) -> tuple[FileTensor, ...]:
    """The tensors in the order of the file; they follow each other with nothing but padding."""
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise cursor.lie(f"holds tensor {quote(tensor.name)} twice")
        names.add(tensor.name)
    found = sorted(tensors, key=lambda tensor: tensor.offset)
    end, before = data_start, "header"
    for tensor in found:
        apart = tensor.offset - end
        if apart < 0:
            raise cursor.lie(
                f"lets tensor {quote(tensor.name)} overlap {quote(before)} by {-apart:,} bytes"
            )
        if apart >= alignment:
            raise cursor.lie(f"leaves a hole of {apart:,} bytes before {quote(tensor.name)}")
        end, before = tensor.offset + tensor.nbytes, tensor.name
    if cursor.stamp.size >= align_up(end, alignment) + alignment:
        raise cursor.lie(f"holds {cursor.stamp.size - end:,} bytes behind its last tensor")
    return tuple(found)


def _tensor(cursor: _Cursor, entry: _Entry, place: "_Place") -> FileTensor:
    """A tensor where it lies, with as many axes as it had before it was stored."""
    made = _sized(cursor, entry)
    name, offset = quote(entry.name), place.data_start + entry.offset
    if entry.offset % place.alignment:
        raise cursor.lie(
            f"places tensor {name} at byte {entry.offset:,} of its data, no multiple of "
            f"{place.alignment}"
        )
    if offset + made.nbytes > cursor.stamp.size:
        raise cursor.lie(
            f"lets tensor {name} end at byte {offset + made.nbytes:,} and itself at "
            f"{cursor.stamp.size:,}"
        )
    made = replace(made, offset=offset)
    shape = place.values.get(_SHAPE_KEY + entry.name)
    if shape is None:
        return made
    sizes = tuple(int(size) for size in shape) if isinstance(shape, tuple) else ()
    if min(sizes, default=0) < 1 or math.prod(sizes) != math.prod(entry.shape):
        raise cursor.lie(
            f"says that tensor {name} was {quote(shape)} and stores {quote(list(entry.shape))}"
        )
    return replace(made, weight_shape=sizes) if made.block else replace(made, shape=sizes)


@dataclass(frozen=True, slots=True)
class _Place:
    """What the tensors' places are counted from, and what the file says beside them."""

    data_start: int
    alignment: int
    values: Mapping[str, _Value]


def _sized(cursor: _Cursor, entry: _Entry) -> FileTensor:
    """A tensor in its type, not placed yet."""
    name, shape = entry.name, entry.shape
    if entry.kind in PLAIN:
        dtype = PLAIN[entry.kind]
        return FileTensor(name, dtype, shape, 0, math.prod(shape) * ITEM_BYTES[dtype])
    kind = BLOCKS.get(entry.kind)
    if kind is None:
        known = ", ".join(block.name for block in BLOCKS.values())
        stored = OTHERS.get(entry.kind, f"type {entry.kind}")
        raise HeaderError(
            f"{cursor.path} stores tensor {quote(name)} as {stored}, for which there is no "
            f"decoder: use a file in {known}, F16, BF16 or F32"
        )
    if shape[-1] % kind.block:
        raise cursor.lie(
            f"gives tensor {quote(name)} rows of {shape[-1]:,}, no multiple of the {kind.block} "
            f"numbers in a block of {kind.name}"
        )
    blocks = math.prod(shape) // kind.block
    held = (blocks, kind.nbytes)
    return FileTensor(name, "uint8", held, 0, blocks * kind.nbytes, kind.name, shape)
