"""A conversion that is refused, cut off, killed or cheated: nothing half done bears the name."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made import raw, save, write_raw

from blockswap.convert import cast, convert, part, verify_pair
from blockswap.errors import ArgsError, BlockSwapError, CheckpointError, OutputError, ReadError
from blockswap.layout import writing
from blockswap.layout.geometry import WanGeometry
from blockswap.store.file_io import StreamedFile
from blockswap.synth import synth

TINY = WanGeometry(
    dim=64, ffn_dim=96, num_layers=4, num_heads=2, in_channels=4, out_channels=4, text_dim=24
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return synth(TINY, tmp_path / "source.safetensors", dtype="float32").path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "target.safetensors"


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cast, "PIECE_BYTES", 4096)
    monkeypatch.setattr(part, "SAVE_BYTES", 16 * 1024)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def whole(source: Path, folder: Path) -> bytes:
    """What a conversion that nobody disturbs writes."""
    path = folder / "undisturbed.safetensors"
    convert(source, path, dtype="bfloat16")
    return path.read_bytes()


def refused(words: str, *args: object, **options: object) -> None:
    with pytest.raises(BlockSwapError, match=re.escape(words)) as caught:
        convert(*args, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


CHILD = """
import os, signal, sys
from blockswap.convert import cast, convert, part
cast.PIECE_BYTES, part.SAVE_BYTES = 4096, 16 * 1024
share = float(sys.argv[3])
def progress(done, total):
    if done >= share * total:
        os.kill(os.getpid(), signal.SIGKILL)
convert(sys.argv[1], sys.argv[2], dtype="bfloat16", progress=progress)
"""


@pytest.mark.parametrize("share", [0.01, 0.3, 0.49, 0.8])
def test_killed_and_called_again_it_gives_the_same_bytes(
    share: float, source: Path, target: Path, tmp_path: Path, small_steps: None
) -> None:
    command = [sys.executable, "-c", CHILD, str(source), str(target), str(share)]
    killed = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not target.exists()
    told = convert(source, target, dtype="bfloat16")
    assert target.read_bytes() == whole(source, tmp_path)
    assert (told.resumed_bytes > 0) == (share > 0.05)
    if share > 0.5:  # killed while it was compared: nothing is left to write
        assert told.resumed_bytes == told.nbytes
    assert told.notes == ()
    assert names(target.parent) == [target.name]


def stop_at(share: float, error: type[BaseException]) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= share * total:
            raise error

    return progress


def interrupted(source: Path, target: Path, share: float = 0.3) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, dtype="bfloat16", progress=stop_at(share, KeyboardInterrupt))
    assert not target.exists()


def test_ctrl_c_loses_nothing(
    source: Path, target: Path, tmp_path: Path, small_steps: None
) -> None:
    interrupted(source, target)
    assert names(target.parent) == [f".{target.name}.journal", f".{target.name}.part"]
    written = (target.parent / f".{target.name}.part").stat().st_size
    told = convert(source, target, dtype="bfloat16")
    assert told.resumed_bytes == written > 0
    assert target.read_bytes() == whole(source, tmp_path)


def edited(source: Path) -> None:
    data = bytearray(source.read_bytes())
    data[-1] ^= 1
    source.write_bytes(data)


def replaced(source: Path) -> None:
    copy = source.with_suffix(".copy")
    shutil.copy2(source, copy)
    copy.replace(source)


@pytest.mark.parametrize("change", [edited, replaced])
def test_a_source_that_changed_is_begun_anew_and_it_is_said(
    change: Callable[[Path], None],
    source: Path,
    target: Path,
    tmp_path: Path,
    small_steps: None,
) -> None:
    interrupted(source, target)
    change(source)
    told = convert(source, target, dtype="bfloat16")
    assert told.resumed_bytes == 0
    assert told.notes == ("an unfinished conversion was begun anew: the source was changed since",)
    assert target.read_bytes() == whole(source, tmp_path)


def test_other_options_begin_anew(source: Path, target: Path, small_steps: None) -> None:
    interrupted(source, target)
    told = convert(source, target, dtype="float16")
    assert "other options" in told.notes[0]
    assert verify_pair(source, target).differences == ()


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"version": 1}', b"\xff"])
def test_a_journal_that_makes_no_sense_is_not_believed(
    damage: bytes, source: Path, target: Path, small_steps: None
) -> None:
    interrupted(source, target)
    (target.parent / f".{target.name}.journal").write_bytes(damage)
    assert convert(source, target, dtype="bfloat16").notes != ()
    assert verify_pair(source, target).differences == ()


def test_a_part_shorter_than_its_journal_is_not_believed(
    source: Path, target: Path, small_steps: None
) -> None:
    interrupted(source, target)
    os.truncate(target.parent / f".{target.name}.part", 100)
    assert "unfinished file was changed" in convert(source, target, dtype="bfloat16").notes[0]


@pytest.mark.parametrize("at", [20, 8192, 100_000])
def test_a_part_that_was_spoilt_meanwhile_is_found_out(
    at: int, source: Path, target: Path, small_steps: None
) -> None:
    """The journal cannot know; the comparison does, and the next run begins anew."""
    interrupted(source, target, 0.45)
    with (target.parent / f".{target.name}.part").open("r+b") as file:
        file.seek(at)
        file.write(b"\x55" * 64)
    refused("reads back differently", source, target, dtype="bfloat16")
    assert names(target.parent) == []
    convert(source, target, dtype="bfloat16")


def test_a_source_edited_under_the_conversion_is_noticed(
    source: Path, target: Path, small_steps: None
) -> None:
    def touch(done: int, total: int) -> None:
        os.utime(source, ns=(1, 1))

    with pytest.raises(ReadError, match="was written to"):
        convert(source, target, progress=touch)
    assert not target.exists()


def test_a_disk_that_fills_up_keeps_what_is_there(
    source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_steps: None
) -> None:
    write, written = part._write, []

    def full(file: object, chunk: bytes) -> None:
        written.append(len(chunk))
        if len(written) > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, chunk)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(part, "_write", full)
        with pytest.raises(OutputError, match=r"No space left on device after .* of .*, make room"):
            convert(source, target, dtype="bfloat16")
    assert not target.exists()
    told = convert(source, target, dtype="bfloat16")
    assert told.resumed_bytes == sum(written[:10])
    assert target.read_bytes() == whole(source, tmp_path)


def test_too_little_room_is_said_with_both_numbers(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: usage(0, 0, 1024))
    with pytest.raises(OutputError, match=r"takes \d+\.\d KiB, .* has 1.0 KiB free: free \d"):
        convert(source, target)
    assert names(target.parent) == []


def test_a_source_that_cannot_be_read_names_tensor_and_byte(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(StreamedFile, "_read_once", broken)
        with pytest.raises(ReadError, match=r"reading \S+ from \S+ at byte \d+ failed: Input"):
            convert(source, target)
    assert convert(source, target).nbytes == target.stat().st_size


def test_only_one_conversion_writes_a_file_at_a_time(source: Path, target: Path) -> None:
    def second(done: int, total: int) -> None:
        refused("is being written by another conversion", source, target)

    convert(source, target, progress=second)
    assert verify_pair(source, target).differences == ()


def test_the_source_itself_is_never_the_target(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    refused("it is the source itself", source, source, overwrite=True)
    os.link(source, tmp_path / "link.safetensors")
    refused("it is the source itself", source, tmp_path / "link.safetensors", overwrite=True)
    assert source.read_bytes() == before


def test_what_is_there_is_kept_unless_it_may_be_replaced(source: Path, target: Path) -> None:
    target.write_bytes(b"precious")
    refused("is there already", source, target)
    assert target.read_bytes() == b"precious"
    convert(source, target, overwrite=True)
    assert verify_pair(source, target).differences == ()


def test_targets_that_are_no_file_are_refused(source: Path, tmp_path: Path) -> None:
    refused("end the file's name with", source, tmp_path / "x.bin")
    refused("is not there, create it first", source, tmp_path / "no" / "x.safetensors")
    (tmp_path / "d.safetensors").mkdir()
    refused("a folder of this name", source, tmp_path / "d.safetensors", overwrite=True)


@pytest.mark.parametrize(
    "extra",
    [
        ("blocks.0.ffn.2.weight", "int8", (4, 4)),
        ("blocks.0.ffn.2.weight", "uint8", (4, 4)),
    ],
)
def test_quantised_files_are_reordered_but_not_cast(
    extra: tuple[str, str, tuple[int, ...]], tmp_path: Path, target: Path
) -> None:
    tensors = [raw("blocks.0.ffn.0.weight", "float8_e4m3fn", (4, 4)), raw(*extra)]
    source = write_raw(tmp_path / "quantised.safetensors", tensors)
    refused("is quantised", source, target, dtype="bfloat16")
    convert(source, target)
    assert verify_pair(source, target).differences == ()


def test_other_requests_without_sense_are_refused(
    source: Path, target: Path, tmp_path: Path
) -> None:
    refused("is no target: use one of bfloat16", source, target, dtype="float8_e4m3fn")
    vae = save(tmp_path / "vae.safetensors", {"decoder.upsamples.0.x": torch.zeros(2)})
    with pytest.raises(ArgsError, match="is the VAE of Wan"):
        convert(vae, target)
    with pytest.raises(CheckpointError, match="is not there"):
        convert(tmp_path / "absent.safetensors", target)


def test_verification_tells_every_kind_of_difference(tmp_path: Path) -> None:
    tensors = [raw(f"blocks.0.{name}", "float32", (3, 3), seed=1) for name in "abcd"]
    source = write_raw(tmp_path / "s.safetensors", tensors)
    other = [
        raw("blocks.0.a", "float32", (3, 3), seed=2),
        raw("blocks.0.b", "float32", (9,), seed=1),
        raw("blocks.0.c", "int32", (3, 3), seed=1),
        raw("blocks.0.e", "float32", (1,)),
        raw("blockswap_padding.0", "uint8", (5,), seed=1),
    ]
    found = verify_pair(source, write_raw(tmp_path / "t.safetensors", other)).differences
    expected = (
        "lacks 'blocks.0.d'",
        "holds 'blocks.0.e', which",
        "'blocks.0.a' differs",
        "'blocks.0.b' is [9]",
        "'blocks.0.c' is int32",
        "padding and not zero",
    )
    for words in expected:
        assert any(words in difference for difference in found), (words, found)
    assert len(found) == len(expected)


MEMORY = """
import json, resource, sys
import torch
from blockswap.convert import convert
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.zeros(10).to(torch.bfloat16)
before = peak()
convert(sys.argv[1], sys.argv[2], dtype="bfloat16")
print(json.dumps(peak() - before))
"""


def test_memory_does_not_grow_with_the_tensors(tmp_path: Path, target: Path) -> None:
    """One tensor of 400 MiB is written in less than a quarter of that."""
    nbytes = 400 * 1024 * 1024
    path = tmp_path / "large.safetensors"
    header = write_raw(path, [_Large("blocks.0.ffn.0.weight", nbytes)]).stat().st_size
    with path.open("r+b") as file:  # a hole: no time and no room
        file.truncate(header + nbytes)
    command = [sys.executable, "-c", MEMORY, str(path), str(target)]
    told = subprocess.run(command, capture_output=True, timeout=300, check=True, text=True)
    assert json.loads(told.stdout) < 100 * 1024 * 1024
    assert target.stat().st_size > nbytes // 2


class _Large:
    """A tensor whose bytes are left to a hole in the file."""

    dtype = "float32"
    data = b""

    def __init__(self, name: str, nbytes: int) -> None:
        self.name, self.nbytes, self.shape = name, nbytes, (nbytes // 4,)
