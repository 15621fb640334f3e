"""Positional reads by every means a platform may have, and what a file does meanwhile."""

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from disk_seam import Disk
from file_faults import a_third, broken, grown, in_thread, replaced, touched

from blockswap.errors import ReadError
from blockswap.layout.stamp import FileStamp, stamp_of
from blockswap.store.disk import DiskStore, DiskUnit
from blockswap.store.file_io import StreamedFile, memory_at
from blockswap.store.file_slab import SECTOR, Extent
from blockswap.store.landing import Landing
from blockswap.stream.device import aligned

SIZE = 3 * SECTOR + 777


@dataclass(frozen=True)
class Header:
    """What a header reader remembers of its file."""

    path: Path
    stamp: FileStamp


def header_of(path: Path) -> Header:
    return Header(path, stamp_of(os.stat(path)))


@pytest.fixture
def content() -> bytes:
    return bytes(torch.randint(0, 256, (SIZE,), dtype=torch.uint8).tolist())


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "data.bin"
    file.write_bytes(content)
    return file


def buffer(nbytes: int) -> torch.Tensor:
    """Sector-aligned memory full of 0xEE."""
    return aligned(torch.full((nbytes + SECTOR,), 0xEE, dtype=torch.uint8), nbytes)


def read_unit(store: DiskStore, memory: torch.Tensor) -> int:
    """Reads the store's first unit in this thread; the bytes that were moved."""
    landing = Landing.at(memory.data_ptr())
    for piece in store.pieces(0, landing):
        piece()
    return store.settle(0, landing)


def no_direct(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(os, "O_DIRECT", raising=False)


def no_preadv(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(os, "preadv", raising=False)


def no_fadvise(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(os, "O_DIRECT", raising=False)
    patch.delattr(os, "posix_fadvise", raising=False)


def nothing_of_linux(patch: pytest.MonkeyPatch) -> None:
    for name in ("O_DIRECT", "preadv", "posix_fadvise", "O_CLOEXEC"):
        patch.delattr(os, name, raising=False)


def direct_open_fails(patch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(file: str, flags: int, *args: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(file, flags, *args)

    patch.setattr(os, "open", refusing)


def direct_read_fails(patch: pytest.MonkeyPatch) -> None:
    """The flag is taken, the reads are refused: some network and FUSE mounts."""
    import fcntl

    real = os.preadv

    def refusing(fd: int, buffers: Any, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, buffers, offset)

    patch.setattr(os, "preadv", refusing)


PLATFORMS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None] | None, str]] = {
    "as it is": (None, ""),
    "no O_DIRECT": (no_direct, "buffered"),
    "no preadv": (no_preadv, "plain"),
    "no posix_fadvise": (no_fadvise, "buffered"),
    "as Windows": (nothing_of_linux, "plain"),
}
if hasattr(os, "O_DIRECT"):
    PLATFORMS["O_DIRECT refused at open"] = (direct_open_fails, "buffered")
    PLATFORMS["O_DIRECT refused at read"] = (direct_read_fails, "buffered")
if not hasattr(os, "preadv"):
    PLATFORMS = {name: (change, "plain") for name, (change, _) in PLATFORMS.items()}


@pytest.mark.parametrize("name", PLATFORMS)
def test_the_bytes_are_the_files_on_every_platform(
    name: str, path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, mode = PLATFORMS[name]
    if change is not None:
        change(monkeypatch)
    file = StreamedFile(header_of(path))
    for offset, size in ((0, 4 * SECTOR), (SECTOR, 2 * SECTOR), (0, SECTOR), (2 * SECTOR, SECTOR)):
        memory = buffer(size)
        needed = min(size, SIZE - offset)
        file.read(offset, memory_at(memory.data_ptr(), size), needed)
        assert bytes(memory[:needed].tolist()) == content[offset : offset + needed]
    if mode:
        assert file.mode == mode
    file.close()


def test_direct_false_reads_through_the_page_cache(path: Path, content: bytes) -> None:
    file = StreamedFile(header_of(path), direct=False)
    assert file.mode == ("buffered" if hasattr(os, "preadv") else "plain")
    memory = buffer(SECTOR)
    file.read(0, memory_at(memory.data_ptr(), SECTOR), SECTOR)
    assert bytes(memory.tolist()) == content[:SECTOR]
    file.close()


def test_short_reads_are_continued(
    path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch).fault = a_third
    file = StreamedFile(header_of(path))
    memory = buffer(4 * SECTOR)
    file.read(0, memory_at(memory.data_ptr(), 4 * SECTOR), SIZE)
    assert bytes(memory[:SIZE].tolist()) == content
    file.close()


@pytest.mark.parametrize("name", PLATFORMS)
def test_many_threads_read_one_file_at_a_time(
    name: str, path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, _ = PLATFORMS[name]
    if change is not None:
        change(monkeypatch)
    file = StreamedFile(header_of(path))
    wrong: list[object] = []

    def read(seed: int) -> None:
        try:
            for turn in range(30):
                offset = (seed + turn) % 3 * SECTOR
                memory = buffer(SECTOR)
                file.read(offset, memory_at(memory.data_ptr(), SECTOR), SECTOR)
                if bytes(memory.tolist()) != content[offset : offset + SECTOR]:
                    wrong.append((seed, turn))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    file.close()
    assert wrong == []


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_file_cut_short_is_said_with_its_byte(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, _ = PLATFORMS[name]
    if change is not None:
        change(monkeypatch)
    file = StreamedFile(header_of(path))
    os.truncate(path, SECTOR + 100)
    memory = buffer(4 * SECTOR)
    with pytest.raises(ReadError, match=rf"data\.bin ends at byte {SECTOR + 100}, \d+ bytes"):
        file.read(0, memory_at(memory.data_ptr(), 4 * SECTOR), SIZE)
    file.close()


@pytest.mark.parametrize("change", [touched, grown])
def test_a_file_changed_while_open_is_noticed(change: Callable[[Path], None], path: Path) -> None:
    file = StreamedFile(header_of(path))
    file.check_unchanged()
    change(path)
    with pytest.raises(ReadError, match=r"data\.bin was written to"):
        file.check_unchanged()
    file.close()


@pytest.mark.parametrize("change", [touched, grown, replaced])
def test_a_file_changed_before_it_is_opened_is_refused(
    change: Callable[[Path], None], path: Path
) -> None:
    header = header_of(path)
    change(path)
    with pytest.raises(ReadError, match=r"data\.bin was"):
        StreamedFile(header)


def test_a_file_that_is_gone_is_refused(path: Path) -> None:
    header = header_of(path)
    path.unlink()
    with pytest.raises(ReadError, match=r"data\.bin cannot be opened"):
        StreamedFile(header)


@pytest.mark.parametrize("name", PLATFORMS)
def test_close_gives_back_every_descriptor(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    change, _ = PLATFORMS[name]
    before = psutil.Process().num_fds()
    with monkeypatch.context() as patch:
        if change is not None:
            change(patch)
        file = StreamedFile(header_of(path))
        memory = buffer(SECTOR)

        def read() -> None:
            file.read(0, memory_at(memory.data_ptr(), SECTOR), SECTOR)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        file.close()
        file.close()
    assert psutil.Process().num_fds() == before


def test_no_descriptor_left_is_one_sentence_and_leaves_none_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    before = psutil.Process().num_fds()
    units = [DiskUnit("blocks.0", (Extent(0, 0, 8), Extent(1, 0, 8)))]
    disk, opened = Disk(monkeypatch), []

    def exhausted() -> None:
        if path.with_suffix(".other") in map(Path, opened):
            raise OSError(errno.EMFILE, "Too many open files")

    real = os.open

    def counted(file: str, *args: Any) -> int:
        opened.append(file)
        exhausted()
        return real(file, *args)

    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes())
    headers = [header_of(path), header_of(other)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", counted)
        disk.opening = lambda file: (opened.append(file), exhausted())
        with pytest.raises(ReadError, match="Too many open files"):
            DiskStore(headers, units)
    assert psutil.Process().num_fds() == before


def test_an_error_names_file_block_byte_and_cause(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    store = DiskStore([header_of(path)], [DiskUnit("blocks.7", (Extent(0, SECTOR + 5, 100),))])
    memory = buffer(store.slabs[0].slab.nbytes)

    disk.fault = broken
    with pytest.raises(ReadError) as raised:
        read_unit(store, memory)
    disk.heal()
    for word in ("blocks.7", str(path), f"byte {SECTOR}", "Input/output error"):
        assert word in str(raised.value)
    assert isinstance(raised.value.__cause__, OSError)
    read_unit(store, memory)  # the disk is well again
    store.close()


def test_a_handle_opened_later_is_of_the_same_file(
    path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain reads: each thread opens the file by name, which may be another file's by then."""
    nothing_of_linux(monkeypatch)
    file = StreamedFile(header_of(path))
    replaced(path)
    path.write_bytes(bytes(SIZE))
    memory = buffer(SECTOR)
    view = memory_at(memory.data_ptr(), SECTOR)
    (error,) = in_thread(lambda: file.read(0, view, SECTOR))
    assert isinstance(error, ReadError)
    assert "was replaced by another file" in str(error)
    file.close()


def test_a_file_is_not_opened_again_after_it_was_closed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that a stuck disk held finds its file closed when the disk answers."""
    import psutil

    for change in (None, nothing_of_linux):
        before = psutil.Process().num_fds()
        with monkeypatch.context() as patch:
            if change is not None:
                change(patch)
            file = StreamedFile(header_of(path))
            file.close()
            memory = buffer(SECTOR)
            view = memory_at(memory.data_ptr(), SECTOR)
            (error,) = in_thread(lambda: file.read(0, view, SECTOR))
        assert "was closed while it was being read" in str(error)
        assert psutil.Process().num_fds() == before


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="there is no O_DIRECT to be refused")
@pytest.mark.parametrize("cause", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_too_few_descriptors_is_not_taken_for_a_missing_o_direct(
    cause: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    real, before = os.open, psutil.Process().num_fds()

    def exhausted(file: str, flags: int, *args: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(cause, os.strerror(cause))
        return real(file, flags, *args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", exhausted)
        with pytest.raises(ReadError, match="cannot be opened"):
            StreamedFile(header_of(path))
    assert psutil.Process().num_fds() == before
