"""Files are written whole or not at all."""

import os
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


HEADS = {
    "picture": b"\x89PNG\r\n\x1a\n",
    "trace": b'{"traceEvents":[',
    "video": b"\0\0\0 ftypisom",
}
OTHERS = {
    "model": (80).to_bytes(8, "little") + b'{"a":{"dtype":"F32"',
    "text": b"notes",
    "json": b'{"num_heads": 2}',
}


@pytest.mark.parametrize("old", [*HEADS, *OTHERS, "nothing"])
@pytest.mark.parametrize("new", [*HEADS, "text"])
def test_a_report_only_takes_the_place_of_one_of_its_kind(
    tmp_path: Path, new: str, old: str
) -> None:
    before = {**HEADS, **OTHERS, "nothing": b""}[old]
    content = {**HEADS, **OTHERS}[new] + b"new"
    (tmp_path / "a").write_bytes(before)
    if old == "nothing" or (old == new and new in HEADS):
        write_whole(tmp_path / "a", lambda file: file.write(content))
        assert (tmp_path / "a").read_bytes() == content
    else:
        with pytest.raises(OutputError, match="is there and would be lost, choose another name"):
            write_whole(tmp_path / "a", lambda file: file.write(content))
        assert (tmp_path / "a").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("what", ["pipe", "link", "dangling link", "folder"])
def test_what_is_no_plain_file_stays(tmp_path: Path, what: str) -> None:
    there, picture = tmp_path / "a", tmp_path / "old.png"
    picture.write_bytes(HEADS["picture"])
    if what == "pipe":
        os.mkfifo(there)
    elif what == "folder":
        there.mkdir()
    else:
        there.symlink_to(picture if what == "link" else tmp_path / "nowhere")
    before = os.lstat(there)
    with pytest.raises(OutputError, match="is there and would be lost"):
        write_whole(there, lambda file: file.write(HEADS["picture"] + b"new"))
    assert os.lstat(there).st_ino == before.st_ino
    assert picture.read_bytes() == HEADS["picture"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_came_while_it_was_drawn_stays(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        file.write(HEADS["picture"])
        (tmp_path / "a").write_bytes(b"someone else's")

    with pytest.raises(OutputError, match="would be lost"):
        write_whole(tmp_path / "a", write)
    assert (tmp_path / "a").read_bytes() == b"someone else's"


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250, "x" * 300 + "/a", "a\0b", b"a", 7], ids=str)
def test_a_name_that_no_file_has_is_refused(tmp_path: Path, name: object) -> None:
    path = tmp_path / name if isinstance(name, str) else name
    with pytest.raises(OutputError, match="cannot write"):
        write_whole(path, lambda file: file.write(b"one"))  # type: ignore[arg-type]
