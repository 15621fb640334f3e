"""Synthesised checkpoints reach the disk whole or not at all."""

import errno
import os
import re
from collections import namedtuple
from pathlib import Path

import pytest

from blockswap.errors import OutputError
from blockswap.layout import writing
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import WanGeometry, infer_geometry
from blockswap.synth import synth, write
from blockswap.synth.draw import Drawer

TINY = WanGeometry(
    dim=32, ffn_dim=48, num_layers=2, num_heads=2, in_channels=4, out_channels=4, text_dim=24
)
SHARD = 20_000


def refused(words: str, path: Path, **options: object) -> None:
    with pytest.raises(OutputError, match=re.escape(words)) as caught:
        synth(TINY, path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_an_existing_file_is_kept_unless_overwriting_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    path.write_text("precious")
    refused("is there already", path)
    assert path.read_text() == "precious"
    synth(TINY, path, overwrite=True)
    assert infer_geometry(open_checkpoint(path)) == TINY


def test_a_filled_folder_is_kept_unless_overwriting_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    refused("is there already", tmp_path, shard_bytes=SHARD)
    synth(TINY, tmp_path, shard_bytes=SHARD, overwrite=True)
    assert infer_geometry(open_checkpoint(tmp_path)) == TINY
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_an_empty_folder_takes_shards(tmp_path: Path) -> None:
    synth(TINY, tmp_path, shard_bytes=SHARD)
    assert infer_geometry(open_checkpoint(tmp_path)) == TINY


def test_overwriting_with_fewer_shards_leaves_no_old_ones(tmp_path: Path) -> None:
    many = synth(TINY, tmp_path, shard_bytes=5_000)
    few = synth(TINY, tmp_path, shard_bytes=SHARD, overwrite=True)
    assert len(few.files) < len(many.files)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in few.files}


def test_an_absent_folder_is_not_made_up(tmp_path: Path) -> None:
    refused("is not there, create it first", tmp_path / "no" / "f.safetensors")
    refused("is not there, create it first", tmp_path / "no" / "shards", shard_bytes=SHARD)


def test_a_file_must_be_called_safetensors(tmp_path: Path) -> None:
    refused("end the file's name with .safetensors", tmp_path / "model")


def test_shards_need_a_folder(tmp_path: Path) -> None:
    refused("they go into a folder", tmp_path / "f.safetensors", shard_bytes=SHARD)


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.safetensors").mkdir()
    refused("a folder of this name is there", tmp_path / "f.safetensors", overwrite=True)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("precious")
    refused("a file of this name is there", tmp_path / "shards", shard_bytes=SHARD, overwrite=True)


def test_too_little_room_is_said_with_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: usage(0, 0, 1024))
    with pytest.raises(OutputError, match=r"takes \d+\.\d KiB, .* has 1.0 KiB free: free \d"):
        synth(TINY, tmp_path / "f.safetensors")
    assert list(tmp_path.iterdir()) == []


def fail_after(monkeypatch: pytest.MonkeyPatch, tensors: int, error: BaseException) -> None:
    """Lets the drawing of one more tensor than `tensors` raise `error`."""
    draw, drawn = Drawer.draw, []

    def failing(self: Drawer, key: str, shape: tuple[int, ...]) -> object:
        drawn.append(key)
        if len(drawn) > tensors:
            raise error
        return draw(self, key, shape)

    monkeypatch.setattr(Drawer, "draw", failing)


def test_a_disk_that_fills_up_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(monkeypatch, 20, OSError(errno.ENOSPC, "No space left on device"))
    refused("No space left on device, nothing was left there", tmp_path / "f.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_disk_takes_the_new_folder_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(monkeypatch, 40, OSError(errno.EIO, "Input/output error"))
    refused("Input/output error", tmp_path / "shards", shard_bytes=5_000)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_an_old_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = synth(TINY, tmp_path, shard_bytes=SHARD, seed=7)
    before = {path: path.read_bytes() for path in old.files}
    fail_after(monkeypatch, 40, OSError(errno.EIO, "Input/output error"))
    refused("Input/output error", tmp_path, shard_bytes=5_000, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(monkeypatch, 20, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        synth(TINY, tmp_path / "f.safetensors")
    with pytest.raises(KeyboardInterrupt):
        synth(TINY, tmp_path / "shards", shard_bytes=5_000)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_progress_bar_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done * 2 > total:
            raise RuntimeError("the terminal went away")

    with pytest.raises(RuntimeError, match="went away"):
        synth(TINY, tmp_path / "f.safetensors", progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_rename_leaves_no_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(part: Path, target: Path, *, overwrite: bool) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(write, "put_in_place", refuse)
    refused("Permission denied", tmp_path / "f.safetensors")
    refused("Permission denied", tmp_path / "shards", shard_bytes=5_000)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_came_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "f.safetensors"

    def intrude(done: int, total: int) -> None:
        target.write_bytes(b"someone else's")

    with pytest.raises(OutputError, match="came while it was made, and stays"):
        synth(TINY, target, progress=intrude)
    assert target.read_bytes() == b"someone else's"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    synth(TINY, target, overwrite=True, progress=intrude)
    assert target.stat().st_size > 1000


@pytest.mark.parametrize("overwrite", [True, False])
def test_no_pipe_is_replaced(tmp_path: Path, overwrite: bool) -> None:
    os.mkfifo(tmp_path / "f.safetensors")
    with pytest.raises(OutputError, match=r"it is there already|a device, a pipe"):
        synth(TINY, tmp_path / "f.safetensors", overwrite=overwrite)
    assert (tmp_path / "f.safetensors").is_fifo()


@pytest.mark.parametrize("name", ["x" * 300, "x" * 244, "x" * 300 + "/a", "a\0", b"a", 7], ids=str)
def test_an_output_that_is_no_name_is_refused_in_a_sentence(tmp_path: Path, name: object) -> None:
    out = f"{tmp_path}/{name}.safetensors" if isinstance(name, str) else name
    with pytest.raises(OutputError) as refused_:
        synth(TINY, out)  # type: ignore[arg-type]
    assert "\n" not in str(refused_.value)
