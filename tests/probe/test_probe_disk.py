"""The disk of a folder: its rate, the best way to read it, and nothing left behind."""

import errno
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from probe_samples import KIB, SMALL, VirtualDisk

from blockswap.probe import Limits, probe, reads
from blockswap.probe.disk import Measured, measure_disk
from blockswap.store.file_io import StreamedFile

LONG = Limits(
    disk_seconds=1.0,
    scratch_bytes=1024 * KIB,
    readers=(4, 1, 2),
    chunks=(64 * KIB, 16 * KIB, 256 * KIB),
)


def measured(disk: VirtualDisk, place: Path, limits: Limits = LONG) -> Measured:
    return measure_disk(place, limits, clock=disk.clock, seed=1)


def test_the_rate_is_the_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(VirtualDisk(monkeypatch, lambda *_: 50e6), tmp_path)
    assert found.figures is not None
    assert found.figures.bytes_per_second == pytest.approx(50e6, rel=1e-9)
    assert (found.figures.readers, found.figures.chunk_bytes) == (4, 64 * KIB)
    assert all(trial.bytes_per_second == pytest.approx(50e6) for trial in found.trials)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (lambda mode, readers, chunk, _: 9e6 * readers, (4, 64 * KIB)),
        (lambda mode, readers, chunk, _: 9e6 / readers, (1, 64 * KIB)),
        (lambda mode, readers, chunk, _: 9e6 * (1 + (readers == 2)), (2, 64 * KIB)),
        (lambda mode, readers, chunk, _: 90.0 * chunk, (4, 256 * KIB)),
        (lambda mode, readers, chunk, _: 1e12 / chunk, (4, 16 * KIB)),
        (lambda mode, readers, chunk, _: 90.0 * chunk / readers, (1, 256 * KIB)),
    ],
)
def test_the_best_readers_and_chunk_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: object, expected: tuple[int, int]
) -> None:
    figures = measured(VirtualDisk(monkeypatch, rate), tmp_path).figures
    assert figures is not None
    assert (figures.readers, figures.chunk_bytes) == expected


def test_settings_a_little_faster_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = VirtualDisk(monkeypatch, lambda mode, readers, chunk, _: 9e6 * (1 + 0.05 * (chunk < 2e5)
                       + 0.03 * (readers < 4)))  # fmt: skip
    figures = measured(disk, tmp_path).figures
    assert figures is not None
    assert (figures.readers, figures.chunk_bytes) == (4, 64 * KIB)


def test_a_disk_that_is_busy_for_a_while_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All candidates of a stage take turns, so a slow spell is a slow spell of all of them."""
    disk = VirtualDisk(monkeypatch, lambda mode, readers, chunk, _: 1e7 if disk.seconds < 0.2
                       else 5e7)  # fmt: skip
    figures = measured(disk, tmp_path).figures
    assert figures is not None
    assert (figures.readers, figures.chunk_bytes) == (4, 64 * KIB)


def test_a_setting_that_does_not_win_every_turn_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rate(mode: str, readers: int, chunk_bytes: int, reads: int) -> float:
        return 2e7 if readers == 1 and disk.trials.count(1) < 3 else 1e7

    disk = VirtualDisk(monkeypatch, rate)
    figures = measured(disk, tmp_path).figures
    assert disk.trials.count(1) == 3
    assert figures is not None
    assert figures.readers == 4


ASKS_DIRECT = hasattr(os, "O_DIRECT") and hasattr(os, "preadv")


def _has_direct(folder: Path) -> bool:
    if not ASKS_DIRECT:
        return False
    try:
        os.close(os.open(folder / "direct", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        return False
    finally:
        (folder / "direct").unlink(missing_ok=True)
    return True


def test_buffered_reads_are_chosen_where_they_are_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not _has_direct(tmp_path):
        pytest.skip("the test folder's file system has no O_DIRECT")
    disk = VirtualDisk(monkeypatch, lambda mode, *_: 2e7 if mode == "buffered" else 1e7)
    found = measured(disk, tmp_path)
    assert found.figures is not None
    assert not found.figures.direct
    assert found.figures.bytes_per_second == pytest.approx(2e7)
    assert found.sentences == (
        "with O_DIRECT the disk reads 10 MB/s, through the page cache with the pages dropped "
        "behind 20 MB/s",
    )
    assert {trial.mode for trial in found.trials if trial.readers != 4} == {"buffered"}


def test_a_slow_disk_takes_no_more_than_its_time_and_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = VirtualDisk(monkeypatch, lambda *_: 64 * KIB / 0.9)
    found = measured(disk, tmp_path)
    assert found.figures is not None
    assert found.figures.bytes_per_second == pytest.approx(64 * KIB / 0.9)
    assert disk.reads == 1
    assert found.sentences[-1].endswith("settings were left out: the time was up")
    assert len(found.trials) == 1


def test_a_real_folder_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"kept")
    found = measure_disk(tmp_path, SMALL)
    assert found.figures is not None
    assert found.figures.bytes_per_second > 0
    assert found.figures.readers in SMALL.readers
    assert found.figures.chunk_bytes in SMALL.chunks
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_model_file_is_read_and_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(300 * KIB + 17))
    before = file.stat().st_mtime_ns, file.read_bytes()
    found = measure_disk(file, SMALL)
    assert found.figures is not None
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before
    assert list(tmp_path.iterdir()) == [file]


def test_spans_begin_at_different_places_and_stay_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    firsts: set[int] = set()
    files: set[int] = set()
    lock = threading.Lock()

    def read(self: StreamedFile, offset: int, target: memoryview, needed: int) -> None:
        with lock:
            if id(self) not in files:  # each trial opens the file anew
                files.add(id(self))
                opened.append(self)
                firsts.add(offset // len(target))
        assert offset % len(target) == 0
        assert offset + len(target) <= LONG.scratch_bytes

    opened: list[StreamedFile] = []  # kept, so that no identity is used twice
    monkeypatch.setattr(StreamedFile, "read", read)
    limits = replace(LONG, readers=(1,), chunks=(64 * KIB,))
    measure_disk(tmp_path, limits, seed=3)
    assert len(opened) > 3
    assert len(firsts) > 1


def test_ctrl_c_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> float:
        assert list(tmp_path.iterdir()) != []
        raise KeyboardInterrupt

    monkeypatch.setattr(reads.TrialReader, "rate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_disk(tmp_path, SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_writing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    found = measure_disk(tmp_path, SMALL)
    assert found.figures is None
    assert "no scratch file can be written there (No space left on device)" in found.sentences[0]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 10**10 - 2**20, 2**20))
    monkeypatch.setattr(os, "urandom", None)  # would be called first
    found = measure_disk(tmp_path, SMALL)
    assert found.figures is None
    assert "1.0 MiB are free: make room" in found.sentences[0]


def test_a_place_that_is_not_there_is_told(tmp_path: Path) -> None:
    found = probe("cpu", place=tmp_path / "nowhere", limits=SMALL)
    assert found.machine.disk is None
    assert found.machine.read_seconds(10) is None
    assert "nowhere cannot be measured: name a folder or a file there" in found.sentences[-1]


def test_a_file_too_small_is_told(tmp_path: Path) -> None:
    file = tmp_path / "small"
    file.write_bytes(bytes(63 * KIB))
    found = measure_disk(file, SMALL)
    assert found.figures is None
    assert "has only 63.0 KiB, name a file of at least 64.0 KiB" in found.sentences[0]


def test_a_failing_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(StreamedFile, "read", broken)
    found = measure_disk(tmp_path, SMALL)
    assert found.figures is None
    assert found.sentences == (f"the disk at {tmp_path} was not measured: Input/output error",)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_does_not_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    well_again = threading.Event()
    monkeypatch.setattr(reads, "_STUCK_SECONDS", 0.05)
    monkeypatch.setattr(reads, "_CLOSING_SECONDS", 0.01)
    monkeypatch.setattr(StreamedFile, "read", lambda *_: well_again.wait(20))
    try:
        found = measure_disk(tmp_path, SMALL)
    finally:
        well_again.set()
    assert found.figures is None
    assert "did not answer for" in found.sentences[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("O_DIRECT", "files are read through the page cache, without O_DIRECT: this platform"),
        ("preadv", "files are read by plain reads: this platform has no os.preadv"),
    ],
)
def test_what_the_platform_lacks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, words: str
) -> None:
    if missing == "O_DIRECT" and not hasattr(os, "preadv"):
        pytest.skip("this platform lacks more than that")
    monkeypatch.delattr(os, missing, raising=False)
    found = measure_disk(tmp_path, SMALL)
    assert found.figures is not None
    assert not found.figures.direct
    assert found.sentences[0].startswith(words)
    assert {trial.mode for trial in found.trials} == {
        "buffered" if missing == "O_DIRECT" else "plain"
    }


@pytest.mark.skipif(not ASKS_DIRECT, reason="nothing asks for direct reads")
def test_a_file_system_that_refuses_direct_reads_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refusing(path: object, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing)
    found = measure_disk(tmp_path, SMALL)
    assert found.figures is not None
    assert found.sentences[0].endswith("without O_DIRECT: the file system refuses it")


def test_a_cache_that_cannot_be_dropped_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    found = measure_disk(tmp_path, SMALL)
    assert any("the disk may be slower than measured" in sentence for sentence in found.sentences)


def test_no_thread_or_descriptor_is_left(tmp_path: Path) -> None:
    import psutil

    measure_disk(tmp_path, SMALL)
    before = psutil.Process().num_fds(), threading.active_count()
    measure_disk(tmp_path, SMALL)
    assert (psutil.Process().num_fds(), threading.active_count()) == before
