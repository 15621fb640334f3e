"""Faults that no seam makes: real mounts, a real slow disk, real signals, no descriptors left.

Which fault is tested where, and what is asserted of it. "Matrix" is `test_disk_fault_matrix.py`:
the first, a middle and the last read of a forward, with and without prefetch, on the CPU, as on
Windows, and on the simulated accelerator; "both" is matrix and here.

    fault                                      where                       the forward
    EIO on one block                           both                        one error, then a retry
    no memory, no descriptors at a read        matrix                      one error, then a retry
    no descriptors left (RLIMIT_NOFILE)        here                        one error, then a retry
    truncated, shrinking, cut to nothing       matrix, test_disk_faults    one error, then a retry
    edited, touched (size, mtime)              matrix, test_disk_faults    one error, then a retry
    replaced while open (inode)                matrix, test_disk_faults    right: the opened file
    replaced before it is opened               test_streamed_file          refused at the door
    short reads, EINTR                         matrix                      right
    stall of any length                        matrix                      right
    stall while closing                        matrix                      given up, with a warning
    a slow disk (blkio throttle)               here                        right
    mounts without O_DIRECT                    matrix, test_streamed_file  right, and it is said
    tmpfs, ramfs                               here                        right
    SIGINT in a read, or at any line           matrix, test_disk_faults    KeyboardInterrupt, retry
    SIGINT from another process, at any time   here                        KeyboardInterrupt, retry
    no reader thread to be had                 test_readers                one error, then a retry
    a disk that fills up under convert         test_convert_disk, and      one error; what is there
                                               test_full_disk (real)       is gone on from

An error is one sentence with file, block, byte and cause. In each row of matrix and here, what
follows must hold: `close()` works, within a time-out, and threads, descriptors and memory (slots
and staging; on the simulator every device and pinned byte) are as before.
"""

import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Shelf, forward, reference, skeleton
from disk_seam import deadline
from test_leaks import Watch
from test_streamed_file import nothing_of_linux

from blockswap import BlockSwapArgs, open_transformer
from blockswap.errors import BlockSwapError, ReadError
from mounts import mounted

CPU = torch.device("cpu")
BLKIO = Path("/sys/fs/cgroup/blkio")
MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever happened: in time, and with threads, descriptors and memory as before."""
    watch = Watch()
    with deadline():
        yield
    watch.check(grown=32 * MIB)


def opened(path: Path) -> Any:
    args = BlockSwapArgs(blocks_to_swap=5, prefetch_blocks=1)
    return open_transformer(path, args, device=CPU, skeleton=skeleton("mini"))


def assert_right(model: Any) -> None:
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(forward(model, "mini", CPU), reference("mini", CPU))


def copied(shelf: Shelf, folder: Path) -> Path:
    return Path(shutil.copy(shelf.file("mini"), folder / "wan.safetensors"))


@pytest.mark.root
@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_a_mount_in_memory_is_read_right(kind: str, shelf: Shelf, tmp_path: Path) -> None:
    """ramfs has no O_DIRECT; tmpfs has it or not, as the kernel is old or new."""
    with mounted(tmp_path / "mount", "-t", kind, kind) as folder:
        model = opened(copied(shelf, folder))
        assert_right(model)
        said = " ".join(model.blockswap.measured().sentences)
        if kind == "ramfs":
            assert ("has no O_DIRECT" in said) or ("no os.preadv" in said)
        model.blockswap.close()


@pytest.mark.root
def test_sectors_that_are_gone_are_one_error_and_a_retry_is_right(
    shelf: Shelf, tmp_path: Path
) -> None:
    """EIO from a real block device: a loop device whose image was cut below the file's bytes."""
    image, whole = tmp_path / "disk.img", tmp_path / "whole.img"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, timeout=60)
    with mounted(tmp_path / "mount", "-o", "loop", str(image)) as folder:
        (folder / "before").write_bytes(bytes(8 * MIB))
        path = copied(shelf, folder)
        os.sync()
        shutil.copy(image, whole)
        model = opened(path)
        assert_right(model)
        forget(path)
        os.truncate(image, 4 * MIB)
        for _ in range(2):
            with pytest.raises(ReadError, match=rf"reading blocks\.\d from {path} at byte \d+ fai"):
                for _ in range(3):  # what was read before is still good
                    with torch.no_grad():
                        forward(model, "mini", CPU)
        with image.open("r+b") as file:
            file.write(whole.read_bytes())
        forget(path)
        assert_right(model)
        model.blockswap.close()


def forget(path: Path) -> None:
    """Nothing of the file is in the page cache any more."""
    Path("/proc/sys/vm/drop_caches").write_text("1")


@contextmanager
def throttled(path: Path, bytes_per_second: int) -> Iterator[Path]:
    """This process reads no faster from the disk of `path`, meanwhile."""
    number = os.stat(path).st_dev
    group = BLKIO / f"blockswap-{uuid.uuid4().hex[:8]}"
    if not (BLKIO / "blkio.throttle.read_bps_device").exists() or os.geteuid() != 0:
        pytest.skip("needs root and the blkio controller of cgroup v1")
    group.mkdir()
    try:
        disk = f"{os.major(number)}:{os.minor(number)}"
        (group / "blkio.throttle.read_bps_device").write_text(f"{disk} {bytes_per_second}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield group
    finally:
        (BLKIO / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


@pytest.mark.root
def test_a_very_slow_disk_only_costs_time(shelf: Shelf, tmp_path: Path) -> None:
    path = copied(shelf, tmp_path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    forget(path)
    with throttled(path, 256 * 1024) as group:
        model = opened(path)
        assert_right(model)
        read = (group / "blkio.throttle.io_service_bytes").read_text()
        # Through the page cache what two reads share, or opening has read, comes but once.
        share = 1 if hasattr(os, "O_DIRECT") else 2
        least = model.blockswap.plan.read_bytes_per_forward / share
        assert int(read.split("Read ")[1].split()[0]) >= least
        model.blockswap.close()


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """No more than `count` descriptors can be had, beside those that are open."""
    lowest = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    for descriptor in lowest:
        os.close(descriptor)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Numbers below the limit that are free count, too: those between open ones are filled.
    top = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    fillers = []
    while True:
        descriptor = os.open(os.devnull, os.O_RDONLY)
        fillers.append(descriptor)
        if descriptor >= top:
            break
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers.pop() + count, limits[1]))
    os.close(descriptor)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in fillers:
            os.close(descriptor)


def test_opening_with_few_descriptors_works_or_is_one_sentence(
    shelf: Shelf, tmp_path: Path
) -> None:
    path, refused = copied(shelf, tmp_path), []
    for count in range(12):
        with descriptors_left(count):
            try:
                model = opened(path)
            except BlockSwapError as error:
                refused.append(str(error))
                continue
            try:
                assert_right(model)
            except BlockSwapError as error:
                if hasattr(os, "preadv"):
                    raise  # only without it do readers open handles later, with their first read
                refused.append(str(error))
            model.blockswap.close()
    assert 0 < len(refused) < 12
    for sentence in refused:
        assert "Too many open files" in sentence
        assert str(path) in sentence
        assert "\n" not in sentence


def test_readers_that_find_no_descriptor_are_one_error_and_a_retry_is_right(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows each reader opens a handle of its own, with its first read."""
    nothing_of_linux(monkeypatch)
    path = copied(shelf, tmp_path)
    model = open_transformer(path, {"prefetch_blocks": 1}, device=CPU, skeleton=skeleton("mini"))
    swap: Any = model.blockswap
    with descriptors_left(0), torch.no_grad():
        for _ in range(2):
            with pytest.raises(ReadError, match=rf"reading blocks\.\d from {path} .*Too many open"):
                for _ in range(3):
                    forward(model, "mini", CPU)
                    swap._streamer._pool.files[0]._files[0]._local.__dict__.clear()
    assert_right(model)
    swap.close()


# Every forward is compared; an interrupt that comes while the flag is down is asked for again.
CHILD = """
import signal, sys, threading
import torch
from cases import forward, skeleton
from blockswap import BlockSwapArgs, open_transformer

def interrupt(*_):
    if armed:
        raise KeyboardInterrupt

armed, count = False, 0
cpu = torch.device("cpu")
args = BlockSwapArgs(blocks_to_swap=5, prefetch_blocks=int(sys.argv[3]))
signal.signal(signal.SIGINT, interrupt)  # before the file is open: the first one comes with that
model = open_transformer(sys.argv[1], args, device=cpu, skeleton=skeleton("mini"))
with torch.no_grad():
    expected = forward(model, "mini", cpu)
    while count < int(sys.argv[2]):
        try:
            armed = True
            while True:
                assert torch.equal(forward(model, "mini", cpu), expected)
        except KeyboardInterrupt:
            armed = False
        count += 1
        assert torch.equal(forward(model, "mini", cpu), expected)
        print(count, flush=True)
    assert len(threading.enumerate()) > 1
    model.blockswap.close()
assert threading.enumerate() == [threading.main_thread()]
# One that was sent before the last answer was read may come while the interpreter ends.
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("closed", flush=True)
"""


@pytest.mark.parametrize("prefetch", [0, 1])
def test_sigint_at_any_time_from_another_process_is_survived(
    prefetch: int, shelf: Shelf, tmp_path: Path
) -> None:
    path, interrupts = copied(shelf, tmp_path), 200
    command = [sys.executable, "-c", CHILD, str(path), str(interrupts), str(prefetch)]
    here = str(Path(__file__).parent)
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)])}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
    )
    assert child.stdout is not None
    assert child.stderr is not None
    pauses, told = random.Random(prefetch), b""
    try:
        # Under load several answers come at once, the last line of all among them: what has come
        # is counted, by lines, and none is taken for the answer to one certain signal.
        while told.count(b"\n") < interrupts and child.poll() is None:
            wait = 0.01 if told else 0.5  # the first answer needs torch to be imported
            child.send_signal(signal.SIGINT) if told or ready(child, path) else None
            if select.select([child.stdout], [], [], wait + pauses.random() / 100)[0]:
                told += os.read(child.stdout.fileno(), 65536)
        rest, wrong = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0, wrong[-2000:]
    answers = [str(number) for number in range(1, interrupts + 1)]
    assert (told.decode() + rest).split() == [*answers, "closed"]


def ready(child: subprocess.Popen[str], path: Path) -> bool:
    """Whether it handles SIGINT by now, and has the file open."""
    status = Path(f"/proc/{child.pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    open_files = [os.path.realpath(f) for f in Path(f"/proc/{child.pid}/fd").iterdir()]
    return bool(caught >> (signal.SIGINT - 1) & 1) and str(path) in open_files
