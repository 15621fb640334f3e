"""Conversion and synthesis onto a disk that is really full: the room goes while they write."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from test_convert_disk import TINY, names, whole

from blockswap.convert import convert, verify_pair
from blockswap.errors import OutputError
from blockswap.synth import synth
from mounts import mounted

pytestmark = pytest.mark.root
MIB = 1024 * 1024


def filling(folder: Path, *, share: float, room_bytes: int) -> Callable[[int, int], None]:
    """Progress that takes all but `room_bytes` of the disk once `share` is written."""
    hog = folder / "hog"

    def progress(done: int, total: int) -> None:
        if done < share * total or hog.exists():
            return
        with hog.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
            file.truncate(max(0, file.tell() - room_bytes))

    return progress


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return synth(TINY, tmp_path / "source.safetensors", dtype="float32").path


@pytest.mark.parametrize("room_bytes", [0, 5 * 4096])
def test_a_conversion_that_fills_the_disk_goes_on_when_there_is_room(
    room_bytes: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no room left not even the journal can be saved: the older one, or none, is believed."""
    from blockswap.convert import cast, part

    monkeypatch.setattr(cast, "PIECE_BYTES", 4096)
    monkeypatch.setattr(part, "SAVE_BYTES", 16 * 1024)
    with mounted(tmp_path / "mount", "-t", "tmpfs", "-o", f"size={4 * MIB}", "tmpfs") as folder:
        target = folder / "target.safetensors"
        fill = filling(folder, share=0.2, room_bytes=room_bytes)
        with pytest.raises(OutputError, match=r"No space left on device after .* of .*, make room"):
            convert(source, target, dtype="bfloat16", progress=fill)
        assert not target.exists()
        (folder / "hog").unlink()
        told = convert(source, target, dtype="bfloat16")
        assert told.resumed_bytes > 0
        assert target.read_bytes() == whole(source, tmp_path)
        assert verify_pair(source, target).differences == ()
        assert names(folder) == [target.name]


def test_a_synthesis_that_fills_the_disk_leaves_nothing_there(tmp_path: Path) -> None:
    with mounted(tmp_path / "mount", "-t", "tmpfs", "-o", f"size={4 * MIB}", "tmpfs") as folder:
        target = folder / "new.safetensors"
        fill = filling(folder, share=0.2, room_bytes=0)
        with pytest.raises(OutputError, match="No space left on device, nothing was left there"):
            synth(TINY, target, dtype="float32", progress=fill)
        assert names(folder) == ["hog"]
        (folder / "hog").unlink()
        synth(TINY, target, dtype="float32")
