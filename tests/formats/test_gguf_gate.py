"""GGUF headers: what the package writes is read as it reads it, and every lie is refused."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockswap.errors import CheckpointError, HeaderError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.ggml import BLOCKS, OTHERS, PLAIN
from blockswap.layout.gguf_header import read_gguf_header

U32, U64 = "<I", "<Q"


def text(value: bytes) -> bytes:
    return struct.pack(U64, len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack(U32, kind) + value


def entry(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack(U32, len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def made(
    pairs: list[bytes],
    entries: list[bytes],
    data: bytes = b"",
    *,
    counts: tuple[int, int] | None = None,
    head: bytes = b"GGUF" + struct.pack(U32, 3),
) -> bytes:
    tensors, values = counts or (len(entries), len(pairs))
    header = head + struct.pack("<QQ", tensors, values) + b"".join(pairs) + b"".join(entries)
    return header + bytes(-len(header) % 32) + data


ARCHITECTURE = pair(b"general.architecture", 8, text(b"wan"))
FOUR = bytes(32)  # four fp32 numbers, padded to the alignment
ONE = entry(b"a", (4,), 0, 0)
HUGE = 1 << 62


def _nested() -> bytes:
    return pair(b"n", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 0, 1) + b"\1")


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no GGUF file"),
    "cut": (b"GGUF\3\0", "beyond its end"),
    "another magic": (b"GGML" + bytes(60), "GGML file"),
    "a pickle": (b"\x80\x04" + bytes(60), "a pickle"),
    "version 1": (made([], [], head=b"GGUF" + struct.pack(U32, 1)), "version 1"),
    "big-endian": (made([], [], head=b"GGUF" + struct.pack(">I", 3)), "big-endian"),
    "endless tensors": (made([], [], counts=(HUGE, 0)), "tensors, more than it has bytes"),
    "endless entries": (made([], [], counts=(0, HUGE)), "entries, more than it has bytes"),
    "endless key": (made([struct.pack(U64, HUGE)], [], counts=(0, 1)), "bytes for"),
    "endless text": (made([text(b"k") + struct.pack("<IQ", 8, HUGE)], []), "beyond"),
    "endless list": (made([pair(b"k", 9, struct.pack("<IQ", 12, HUGE))], []), "more than it has"),
    "endless texts": (made([pair(b"k", 9, struct.pack("<IQ", 8, HUGE))], []), "more than it has"),
    "long text in a list": (
        made([pair(b"k", 9, struct.pack("<IQQ", 8, 1, HUGE) + bytes(40))], []), "beyond"),
    "lists in lists": (made([_nested()], []), "lists of type 9"),
    "no such type": (made([pair(b"k", 77, b"")], []), "the type 77"),
    "key twice": (made([ARCHITECTURE, ARCHITECTURE], []), "twice"),
    "key not UTF-8": (made([pair(b"\xff\xfe", 0, b"\0")], []), "not UTF-8"),
    "alignment 0": (made([pair(b"general.alignment", 4, struct.pack(U32, 0))], []), "alignment"),
    "alignment 33": (made([pair(b"general.alignment", 4, struct.pack(U32, 33))], []), "alignment"),
    "alignment in words": (made([pair(b"general.alignment", 8, text(b"32"))], []), "alignment"),
    "many axes": (made([], [entry(b"a", (1,) * 9, 0, 0)], FOUR), "9 axes"),
    "no axes": (made([], [entry(b"a", (), 0, 0) + bytes(33)], FOUR), "0 axes"),
    "empty axis": (made([], [entry(b"a", (4, 0), 0, 0)], FOUR), "shape"),
    "overflow": (made([], [entry(b"a", (1 << 40, 1 << 40), 0, 0)], FOUR), "shape"),
    "beyond the file": (made([], [entry(b"a", (400,), 0, 0)], FOUR), "and itself at"),
    "offset beyond": (made([], [entry(b"a", (4,), 0, 1 << 40)], FOUR), "and itself at"),
    "offset odd": (made([], [entry(b"a", (4,), 0, 4)], FOUR), "no multiple of 32"),
    "name twice": (made([], [ONE, entry(b"a", (4,), 0, 32)], FOUR + FOUR), "'a' twice"),
    "overlap": (made([], [ONE, entry(b"b", (4,), 0, 0)], FOUR), "overlap"),
    "hole": (made([], [entry(b"a", (4,), 0, 64)], FOUR * 3), "a hole"),
    "more behind": (made([], [ONE], FOUR * 3), "behind its last tensor"),
    "unknown block": (made([], [entry(b"a", (256,), 16, 0)], bytes(256)), "IQ2_XXS"),
    "type that is none": (made([], [entry(b"a", (256,), 99, 0)], bytes(256)), "type 99"),
    "torn block": (made([], [entry(b"a", (48,), 8, 0)], bytes(64)), "no multiple of the 32"),
    "another shape": (
        made([pair(b"comfy.gguf.orig_shape.a", 9, struct.pack("<IQii", 5, 2, 3, 3))], [ONE], FOUR),
        "says that tensor"),
    "negative shape": (
        made([pair(b"comfy.gguf.orig_shape.a", 9, struct.pack("<IQii", 5, 2, -2, -2))],
             [ONE], FOUR),
        "says that tensor"),
    "shape in words": (
        made([pair(b"comfy.gguf.orig_shape.a", 8, text(b"4"))], [ONE], FOUR), "says that tensor"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_in_one_sentence(lie: str, tmp_path: Path) -> None:
    data, words = LIES[lie]
    path = tmp_path / "f.gguf"
    path.write_bytes(data)
    with pytest.raises(HeaderError) as refused:
        open_checkpoint(path)
    said = str(refused.value)
    assert words in said
    assert str(path) in said
    assert "\n" not in said
    assert len(said) < 600


def test_the_least_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    path.write_bytes(made([ARCHITECTURE], [ONE], FOUR))
    header = read_gguf_header(path)
    assert [(t.name, t.dtype, t.shape, t.nbytes) for t in header.tensors] == [
        ("a", "float32", (4,), 16)
    ]
    assert header.metadata == {"general.architecture": "wan"}


def test_sizes_are_those_of_the_package() -> None:
    for number, block in BLOCKS.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (block.name, block.block, block.nbytes)
    for number, name in OTHERS.items():
        assert gguf.GGMLQuantizationType(number).name == name
    for number in PLAIN:
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)][0] == 1


def test_a_file_of_the_package_is_read_as_it_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_array("words", ["one", "two"])
    writer.add_float32("number", 0.5)
    draw = np.random.default_rng(1)
    for kind in ("Q8_0", "Q4_0", "Q5_1"):
        raw = gguf.quants.quantize(
            draw.random((3, 64), dtype=np.float32), gguf.GGMLQuantizationType[kind]
        )
        writer.add_tensor(kind, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.add_tensor("plain", draw.random((2, 3, 5), dtype=np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    theirs: Any = gguf.GGUFReader(path)
    ours = {tensor.name: tensor for tensor in read_gguf_header(path).tensors}
    assert len(theirs.tensors) == len(ours)
    for tensor in theirs.tensors:
        own = ours[tensor.name]
        assert (own.offset, own.nbytes) == (tensor.data_offset, tensor.n_bytes)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        assert (own.weight_shape or own.shape) == shape
        assert own.block == ("" if tensor.name == "plain" else tensor.name)


def _with(change: Callable[[bytearray], None], path: Path) -> None:
    data = bytearray(made([ARCHITECTURE], [ONE, entry(b"b", (64,), 8, 32)], FOUR + bytes(96)))
    change(data)
    path.write_bytes(data)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 220), value=st.integers(0, 255), cut=st.booleans())
def test_any_change_is_read_or_refused(tmp_path: Path, at: int, value: int, cut: bool) -> None:
    path = tmp_path / "f.gguf"

    def change(data: bytearray) -> None:
        if cut:
            del data[at:]
        elif at < len(data):
            data[at] = value

    _with(change, path)
    try:
        header = read_gguf_header(path)
    except HeaderError as refused:
        assert "\n" not in str(refused)
    else:
        assert all(t.offset + t.nbytes <= os.path.getsize(path) for t in header.tensors)


def test_long_lists_are_skipped_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    many = 100_000
    words = pair(b"w", 9, struct.pack("<IQ", 8, many) + text(b"x") * many)
    numbers = pair(b"n", 9, struct.pack("<IQ", 6, many) + bytes(4 * many))
    path.write_bytes(made([words, numbers], [ONE], FOUR))
    assert read_gguf_header(path).metadata == {}


def _split(folder: Path) -> list[Path]:
    """A file in two parts, as the gguf package splits it."""
    writer = gguf.GGUFWriter(folder / "m.gguf", "wan", split_max_tensors=2)
    for name in ("a", "b", "c"):
        writer.add_tensor(f"blocks.0.{name}", np.ones((2, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("m-*.gguf"))


def test_a_split_file_is_opened_by_its_folder_or_any_part(tmp_path: Path) -> None:
    parts = _split(tmp_path)
    assert [part.name for part in parts] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    for path in (tmp_path, *parts):
        opened = open_checkpoint(path)
        assert opened.paths == tuple(parts)
        assert [tensor.shard for tensor in opened.tensors.values()] == [0, 0, 1]
    (tmp_path / "other.gguf").write_bytes(parts[0].read_bytes())
    assert open_checkpoint(parts[1]).paths == tuple(parts)
    for path, words in (
        (tmp_path, "holds 3 .gguf files"),
        (tmp_path / "other.gguf", "is one of 2 parts of a split file, of which 1 was found"),
    ):
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(path)
    parts[0].unlink()
    with pytest.raises(CheckpointError, match="holds 1 of 2 shards, shard 1 is missing"):
        open_checkpoint(parts[1])


@pytest.mark.parametrize("name", ["f.pt", "f.pth", "f.ckpt", "f.safetensors", "f.gguf"])
def test_no_pickle_is_loaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    import torch

    path = tmp_path / name
    torch.save({"blocks.0.modulation": torch.zeros(1)}, path)

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle was loaded")

    monkeypatch.setattr(pickle, "load", loaded)
    monkeypatch.setattr(pickle, "loads", loaded)
    monkeypatch.setattr(pickle, "Unpickler", loaded)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)
