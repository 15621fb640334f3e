"""Files are written whole or not at all."""

from pathlib import Path
from typing import BinaryIO

import pytest

from blockswap.errors import OutputError
from blockswap.report.output import write_whole


def test_bytes_arrive_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.txt", lambda file: file.write(b"one"))
    assert (tmp_path / "a.txt").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder .*missing is not there, create it first"):
        write_whole(tmp_path / "missing" / "a.txt", lambda file: file.write(b"one"))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "a.txt").write_bytes(b"old")
    with pytest.raises(OutputError, match=r"cannot write .*a\.txt: No space left on device"):
        write_whole(tmp_path / "a.txt", fail)
    assert (tmp_path / "a.txt").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_interrupt_leaves_no_half_file(tmp_path: Path) -> None:
    def interrupt(file: BinaryIO) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a.txt", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_whole(tmp_path / "a.txt", lambda file: file.write(b"one"))
