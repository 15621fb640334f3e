"""The reference library accepts what we accept, and refuses what we refuse."""

import json
import math
import random
import tempfile
from pathlib import Path

import pytest
import torch
from hostile_headers import CORPUS, packed
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from blockswap.errors import HeaderError
from blockswap.layout.dtypes import ITEM_BYTES, SAFETENSORS_CODES
from blockswap.layout.header import FileHeader, read_header

# Where we are stricter on purpose: what the reference guesses about or what we cannot stream.
STRICTER = {
    "tensor twice",
    "structure in a strange field",
    "tensor a list",
    "four-bit dtype",
}
_TORCH_TYPES = [getattr(torch, name) for name in SAFETENSORS_CODES.values()]


def ours(data: bytes) -> FileHeader | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.safetensors")
        path.write_bytes(data)
        try:
            return read_header(path)
        except HeaderError:
            return None


def reference_accepts(data: bytes) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.safetensors")
        path.write_bytes(data)
        try:
            with safe_open(path, "pt") as file:
                list(file.keys())
        except (SafetensorError, OSError, ValueError):
            return False
        return True


@pytest.mark.parametrize(("what", "data"), [c[:2] for c in CORPUS], ids=[c[0] for c in CORPUS])
def test_the_reference_refuses_the_corpus_too(what: str, data: bytes) -> None:
    assert reference_accepts(data) == (what in STRICTER)


shapes = st.lists(st.integers(0, 5), max_size=4)
tensors = st.builds(
    lambda dtype, shape: torch.zeros(shape, dtype=dtype), st.sampled_from(_TORCH_TYPES), shapes
)


@settings(deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=12).filter("__metadata__".__ne__), tensors),
    st.none() | st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
)
def test_what_the_reference_writes_is_read_alike(
    written: dict[str, torch.Tensor], metadata: dict[str, str] | None
) -> None:
    # safetensors 0.8.0 writes {} tensors with {} metadata as a file that it cannot read itself.
    data = save(written, metadata or None)
    header = ours(data)
    assert header is not None
    assert header.metadata == (metadata or {})
    assert {t.name for t in header.tensors} == set(written)
    for tensor in header.tensors:
        twin = written[tensor.name]
        assert tensor.shape == tuple(twin.shape)
        assert getattr(torch, tensor.dtype) == twin.dtype
        assert tensor.nbytes == twin.nbytes


@settings(deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_bytes_at_our_offsets_are_the_tensors(source: random.Random) -> None:
    written = {
        f"t{i}": torch.tensor([source.randrange(256) for _ in range(i)], dtype=torch.uint8)
        for i in range(6)
    }
    data = save(written)
    header = ours(data)
    assert header is not None
    for tensor in header.tensors:
        piece = data[tensor.offset : tensor.offset + tensor.nbytes]
        assert list(piece) == written[tensor.name].tolist()


# Headers near the truth: sizes, offsets and types mostly fit, sometimes not.
numbers = st.integers(0, 24) | st.sampled_from([-1, 1.0, True, None, "4", 2**63, 2**64, 10**30])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16", "F64", "F128"]),
        "shape": st.lists(numbers, max_size=3),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3) | st.tuples(numbers, numbers),
    },
    optional={"note": st.integers() | st.text(max_size=3)},
)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from("abc"), entries, max_size=3), st.integers(0, 32))
def test_a_random_header_is_accepted_exactly_when_the_reference_accepts_it(
    header: dict[str, object], data_bytes: int
) -> None:
    data = packed(header, b"\0" * data_bytes)
    assert (ours(data) is not None) == reference_accepts(data)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_fitting_header_with_one_lie_is_judged_as_the_reference_does(data: st.DataObject) -> None:
    header, end = {}, 0
    for name in data.draw(st.lists(st.sampled_from("abcd"), unique=True)):
        code = data.draw(st.sampled_from(["F32", "U8", "BF16", "F64"]))
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        size = math.prod(shape) * ITEM_BYTES[SAFETENSORS_CODES[code]]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if header and data.draw(st.booleans()):
        victim = header[data.draw(st.sampled_from(sorted(header)))]
        side = data.draw(st.integers(0, 1))
        victim["data_offsets"][side] += data.draw(st.sampled_from([-4, -1, 1, 4]))
    file = packed(header, b"\0" * (end + data.draw(st.sampled_from([0, 0, 0, 1]))))
    assert (ours(file) is not None) == reference_accepts(file)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=64))
def test_random_bytes_never_surprise(data: bytes) -> None:
    accepted = ours(data) is not None
    assert accepted == reference_accepts(data)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=64))
def test_random_bytes_as_a_header_never_surprise(raw: bytes) -> None:
    accepted = ours(packed(raw)) is not None
    assert accepted == reference_accepts(packed(raw))


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_one_damaged_byte_is_refused_or_read_as_the_reference_does(data: st.DataObject) -> None:
    whole = bytearray(save({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.uint8)}))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole)
    header = ours(damaged)
    if header is None:
        length = int.from_bytes(damaged[:8], "little")
        stricter = False
        try:
            text = damaged[8 : 8 + length].decode()
            keys = [k for k, _ in json.loads(text, object_pairs_hook=list)]
            stricter = len(set(keys)) < len(keys) or "F4" in text or "F6" in text
        except ValueError:
            pass
        assert stricter or not reference_accepts(damaged)
    else:
        assert reference_accepts(damaged)
