"""One safetensors header: what is read, and what is refused."""

import os
import re
from pathlib import Path

import pytest
from hostile_headers import CORPUS, F32, WORD, packed

from blockswap.errors import HeaderError
from blockswap.layout import header as header_module
from blockswap.layout.header import MAX_HEADER_BYTES, read_header


def written(folder: Path, data: bytes) -> Path:
    path = folder / "file.safetensors"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("data", "words"), [c[1:] for c in CORPUS], ids=[c[0] for c in CORPUS])
def test_a_lying_file_is_refused_in_one_sentence_that_names_it(
    tmp_path: Path, data: bytes, words: str
) -> None:
    path = written(tmp_path, data)
    with pytest.raises(HeaderError, match=re.escape(words)) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 600


def test_every_lie_of_the_corpus_has_its_own_message(tmp_path: Path) -> None:
    messages = set()
    for _, data, _ in CORPUS:
        with pytest.raises(HeaderError) as caught:
            read_header(written(tmp_path, data))
        messages.add(str(caught.value))
    # Both pickles, both web pages and both overlaps of "a" may share a sentence; so do pictures,
    # and videos and sounds.
    assert len(messages) >= len(CORPUS) - 9


def test_offsets_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    file = {"b": {**F32, "data_offsets": [4, 8]}, "a": F32, "__metadata__": {"k": "v"}}
    path = written(tmp_path, packed(file, b"aaaabbbb"))
    header = read_header(path)
    content = path.read_bytes()
    assert [(t.name, content[t.offset : t.offset + t.nbytes]) for t in header.tensors] == [
        ("a", b"aaaa"),
        ("b", b"bbbb"),
    ]
    assert header.data_start == len(content) - 8
    assert header.file_bytes == header.stamp.size == len(content)
    assert header.metadata == {"k": "v"}
    assert header.tensors[0].dtype == "float32"


def test_a_header_of_any_length_will_do(tmp_path: Path) -> None:
    for spaces in range(8):
        raw = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + b" " * spaces
        assert read_header(written(tmp_path, packed(raw, WORD))).data_start == 8 + len(raw)


def test_scalars_and_empty_tensors_are_tensors(tmp_path: Path) -> None:
    file = {
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "empty": {"dtype": "BF16", "shape": [3, 0], "data_offsets": [4, 4]},
        "first": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
    }
    tensors = {t.name: t for t in read_header(written(tmp_path, packed(file, WORD))).tensors}
    assert tensors["scalar"].nbytes == 4
    assert tensors["scalar"].shape == ()
    assert tensors["empty"].nbytes == tensors["first"].nbytes == 0


def test_a_file_without_tensors_is_a_file(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, packed({})))
    assert header.tensors == ()
    assert header.metadata == {}


def test_null_metadata_is_no_metadata(tmp_path: Path) -> None:
    assert read_header(written(tmp_path, packed({"__metadata__": None}))).metadata == {}


def test_a_well_formed_file_may_begin_like_a_zip(tmp_path: Path) -> None:
    # The length 0x04034b50 spells "PK\3\4".
    raw = b"{}".ljust(0x04034B50)
    assert read_header(written(tmp_path, packed(raw))).tensors == ()


def test_strange_flat_fields_are_passed_over(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, packed({"a": {**F32, "note": -3}}, WORD)))
    assert header.tensors[0].shape == (1,)


def test_a_hostile_name_does_not_fill_the_screen(tmp_path: Path) -> None:
    path = written(tmp_path, packed({"x" * 10**6 + "\n\x1b[2J": 1}))
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    assert len(str(caught.value)) < 600
    assert "\x1b" not in str(caught.value)


def test_a_relative_path_is_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, packed({}))
    monkeypatch.chdir(tmp_path)
    assert read_header(path.name).path == path


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    path = written(tmp_path, packed({"a": F32}, WORD))
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    assert read_header(link).stamp == read_header(path).stamp


def test_an_absent_file_is_said_to_be_absent(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match="is not there"):
        read_header(tmp_path / "no.safetensors")


def test_a_name_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(HeaderError, match="zero byte"):
        read_header("a\0b.safetensors")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match="is a folder"):
        read_header(tmp_path)


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HeaderError, match="not a regular file"):
        read_header(tmp_path / "pipe")


def test_a_device_is_no_file() -> None:
    with pytest.raises(HeaderError, match="not a regular file"):
        read_header("/dev/null")


def test_a_disk_that_refuses_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, packed({}))

    def refuse(fd: int, nbytes: int) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(header_module.os, "read", refuse)
    with pytest.raises(HeaderError, match="Permission denied"):
        read_header(path)


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, packed({"a": F32}, WORD))
    read = os.read
    monkeypatch.setattr(header_module.os, "read", lambda fd, nbytes: read(fd, min(nbytes, 3)))
    assert read_header(path).tensors[0].name == "a"


def test_a_file_that_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, packed({"a": F32}, WORD))
    read = os.read

    def shrinking(fd: int, nbytes: int) -> bytes:
        os.truncate(path, 12)
        return read(fd, nbytes)

    monkeypatch.setattr(header_module.os, "read", shrinking)
    with pytest.raises(HeaderError, match="became shorter"):
        read_header(path)


def test_a_header_of_the_largest_allowed_length_is_not_refused_for_its_length(
    tmp_path: Path,
) -> None:
    # Sparse: the header is all zeros, so it fails later, as JSON.
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(MAX_HEADER_BYTES.to_bytes(8, "little"))
        file.truncate(8 + MAX_HEADER_BYTES)
    with pytest.raises(HeaderError, match="is not JSON"):
        read_header(path)
