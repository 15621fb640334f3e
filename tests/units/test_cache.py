"""The cache folder: where it is, and files that are whole or absent."""

import os
from pathlib import Path

import pytest

from blockswap import cache
from blockswap.cache import cache_folder, read_json, write_json_atomically
from blockswap.errors import OutputError

NAMES = ("BLOCKSWAP_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA")


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {"BLOCKSWAP_CACHE": "here"}, "here"),
        ("linux", {"BLOCKSWAP_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ("linux", {"BLOCKSWAP_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/blockswap"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/blockswap"),
        ("linux", {"LOCALAPPDATA": "/c"}, "/home/me/.cache/blockswap"),
        ("linux", {}, "/home/me/.cache/blockswap"),
        ("darwin", {}, "/home/me/Library/Caches/blockswap"),
        ("win32", {"LOCALAPPDATA": "/c", "XDG_CACHE_HOME": "/b"}, "/c/blockswap"),
        ("win32", {}, "/home/me/AppData/Local/blockswap"),
    ],
)
def test_the_folder_is_where_the_system_has_it(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], folder: str
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(cache.sys, "platform", platform)
    assert cache_folder() == Path(folder)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.json"
    value = {"a": [1, 2.5, None, "ß"], "b": {"c": True}}
    write_json_atomically(path, value)
    assert read_json(path) == value
    write_json_atomically(path, [])
    assert read_json(path) == []
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert read_json(tmp_path / "x.json") is None
    assert read_json(tmp_path / "absent.json") is None
    assert read_json(tmp_path) is None


def test_a_failed_write_leaves_the_old_file_and_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_json_atomically(path, "old")

    def failing(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OutputError, match=r"x\.json \(No space left on device\): make room"):
        write_json_atomically(path, "new")
    assert list(tmp_path.iterdir()) == [path]
    assert read_json(path) == "old"


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="BLOCKSWAP_CACHE"):
        write_json_atomically(tmp_path / "file" / "x.json", 1)
