"""Whether a file is still the one that was opened."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_samples import save_shapes

from blockswap.errors import ReadError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.header import FileHeader, read_header
from blockswap.layout.stamp import verify_unchanged


@pytest.fixture
def header(tmp_path: Path) -> FileHeader:
    return read_header(save_shapes(tmp_path / "f.safetensors", {"a": (4,)}))


@pytest.fixture
def fd(header: FileHeader) -> Iterator[int]:
    number = os.open(header.path, os.O_RDONLY)
    yield number
    os.close(number)


def test_an_untouched_file_is_unchanged(header: FileHeader, fd: int) -> None:
    verify_unchanged(header)
    verify_unchanged(header, fd=fd)


def test_an_edit_in_place_is_seen(header: FileHeader, fd: int) -> None:
    os.utime(header.path, ns=(1, 1))
    for number in (None, fd):
        with pytest.raises(ReadError, match="was written to"):
            verify_unchanged(header, fd=number)


def test_a_truncated_file_is_seen(header: FileHeader, fd: int) -> None:
    os.truncate(header.path, 10)
    for number in (None, fd):
        with pytest.raises(ReadError, match=rf"was cut from {header.file_bytes} to 10 bytes"):
            verify_unchanged(header, fd=number)


def test_a_replaced_file_is_seen_by_name_and_read_on_by_descriptor(
    header: FileHeader, fd: int
) -> None:
    other = save_shapes(header.path.with_name("other.safetensors"), {"a": (4,)})
    os.replace(other, header.path)
    with pytest.raises(ReadError, match="replaced by another file"):
        verify_unchanged(header)
    verify_unchanged(header, fd=fd)


def test_a_vanished_file_is_seen(header: FileHeader) -> None:
    header.path.unlink()
    with pytest.raises(ReadError, match=r"cannot be looked at any more \(No such file"):
        verify_unchanged(header)


def test_a_checkpoint_looks_at_all_its_files(header: FileHeader) -> None:
    checkpoint = open_checkpoint(header.path)
    checkpoint.verify_unchanged()
    os.utime(header.path, ns=(1, 1))
    with pytest.raises(ReadError):
        checkpoint.verify_unchanged()
