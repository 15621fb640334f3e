"""Every fault of a disk at the first, a middle and the last read of a forward, on every path.

An error reaches the forward that needed the block, once, with file, block, byte and cause; a fault
that can be survived costs nothing but time; nothing hangs; a retry after the cause is gone is right
to the last bit; afterwards threads, descriptors and memory are as before. The table of all faults
and their tests is in `test_real_faults.py`.
"""

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from cases import Shelf
from disk_seam import WAIT_SECONDS, CtrlC, Disk, Fault, Read, deadline, record_reads, small_reads
from fault_bench import Bench, memory_given_back
from test_streamed_file import PLATFORMS

from blockswap.errors import ReadError
from blockswap.stream.engine import streamer

PLACES = ("first", "middle", "last")


@pytest.fixture
def platform(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "as it is"))


@pytest.fixture
def bench(
    platform: str,
    device: torch.device,
    shelf: Shelf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    """Checks, whatever happened, that closing works and gives everything back."""
    change, _ = PLATFORMS[platform]
    if change is not None:
        change(monkeypatch)
    path = tmp_path / "wan.safetensors"
    path.write_bytes(shelf.file("mini").read_bytes())
    small_reads(monkeypatch)
    made = Bench(
        path, device, Disk(monkeypatch), record_reads(monkeypatch), path.read_bytes(), path.stat()
    )
    threads, descriptors = set(threading.enumerate()), psutil.Process().num_fds()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)  # by default it ends the process
    with deadline(), memory_given_back(device, monkeypatch):
        yield made
        if made.model is not None:
            made.model.blockswap.close()
        made.model = None
    signal.signal(signal.SIGUSR1, before)
    assert set(threading.enumerate()) <= threads
    assert psutil.Process().num_fds() == descriptors


def failing(error: Callable[[], BaseException]) -> Callable[[Bench], Fault]:
    def spoil(bench: Bench) -> Fault:
        def fault(read: Read, view: memoryview, offset: int) -> int:
            raise error()

        return fault

    return spoil


def shrinking(bench: Bench) -> Fault:
    def fault(read: Read, view: memoryview, offset: int) -> int:
        size = len(bench.content)
        os.truncate(bench.path, min(offset + 100, (offset + size) // 2))
        return read(view)

    return fault


def gone_to_nothing(bench: Bench) -> Fault:
    def fault(read: Read, view: memoryview, offset: int) -> int:
        os.truncate(bench.path, 0)
        return read(view)

    return fault


def edited(bench: Bench) -> Fault:
    def fault(read: Read, view: memoryview, offset: int) -> int:
        with bench.path.open("r+b") as file:
            file.seek(offset)
            file.write(b"\xee" * 8)
        return read(view)

    return fault


def touched(bench: Bench) -> Fault:
    def fault(read: Read, view: memoryview, offset: int) -> int:
        os.utime(bench.path, ns=(1, 1))
        return read(view)

    return fault


# What is done to the disk, and which words say so (any of them).
ERRORS: dict[str, tuple[Callable[[Bench], Fault], tuple[str, ...]]] = {
    "EIO": (failing(lambda: OSError(errno.EIO, "Input/output error")), ("Input/output error",)),
    "ENOMEM": (failing(lambda: OSError(errno.ENOMEM, "Cannot allocate")), ("Cannot allocate",)),
    "EMFILE": (failing(lambda: OSError(errno.EMFILE, "Too many open files")), ("Too many open",)),
    "no memory in Python": (failing(MemoryError), ("MemoryError",)),
    "shrinking": (shrinking, ("ends at byte", "was cut from")),
    "cut to nothing": (gone_to_nothing, ("ends at byte", "was cut from")),
    "edited": (edited, ("was written to",)),
    "touched": (touched, ("was written to",)),
}


@pytest.mark.parametrize(
    ("device", "platform"),
    [
        ("cpu", "as it is"),
        ("cpu", "as Windows"),
        ("sim-eager", "as it is"),
        ("sim-lazy", "as it is"),
    ],
    indirect=True,
)
@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", ERRORS)
def test_an_error_reaches_the_forward_that_needs_the_block(
    name: str, where: str, prefetch: int, bench: Bench
) -> None:
    spoil, causes = ERRORS[name]
    model = bench.open(prefetch_blocks=prefetch)
    at = bench.place(where)
    needy = bench.owners[at]
    blocks = [int(unit.rpartition(".")[2]) for unit in bench.owners[at]]
    bench.disk.at, bench.disk.fault = at, spoil(bench)
    if name not in ("shrinking", "cut to nothing", "edited", "touched"):
        model.order = tuple(i for i in range(5) if i not in blocks)
        bench.forward()  # which does not need it, though it may be read ahead
        model.order = None
    for _ in range(2):
        raised = []
        for _ in range(4):  # what was read before is still good
            try:
                bench.forward()
            except ReadError as error:
                raised.append(str(error))
                break
        assert len(raised) == 1
        assert f"from {bench.path} at byte" in raised[0]
        assert any(cause in raised[0] for cause in causes), raised
        assert raised[0].startswith("reading blocks.")
        assert "\n" not in raised[0]
        if name in ("EIO", "ENOMEM", "EMFILE", "no memory in Python"):
            assert raised[0].startswith(f"reading {needy[0]} from"), (raised, needy)
            assert f"at byte {at} failed" in raised[0]
    bench.heal()
    bench.assert_right()


def a_byte_at_a_time(bench: Bench) -> Fault:
    def fault(read: Read, view: memoryview, offset: int) -> int:
        return read(view[:1])

    return fault


def signalled(bench: Bench) -> Fault:
    """A signal arrives at the reading thread: Python repeats what it cuts short (EINTR)."""

    def fault(read: Read, view: memoryview, offset: int) -> int:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        return read(view)

    return fault


def replaced(bench: Bench) -> Fault:
    """Another file takes the name: what is open is still the file that was opened."""

    def fault(read: Read, view: memoryview, offset: int) -> int:
        bench.disk.heal()
        other = bench.path.with_suffix(".other")
        other.write_bytes(bytes(len(bench.content)))
        other.replace(bench.path)
        return read(view)

    return fault


def direct_refused(bench: Bench) -> Fault:
    """A mount that takes O_DIRECT and then does not like it, from this read on."""

    def fault(read: Read, view: memoryview, offset: int) -> int:
        files = bench.model.blockswap._streamer._pool.files[0]._files
        if any(file._direct is not None for file in files):
            raise OSError(errno.EINVAL, "Invalid argument")
        return read(view)

    return fault


SURVIVED: dict[str, Callable[[Bench], Fault]] = {
    "short reads": a_byte_at_a_time,
    "EINTR": signalled,
    "O_DIRECT refused": direct_refused,
}
if hasattr(os, "preadv"):  # else a thread may open the file later: it is refused then, see there
    SURVIVED["replaced"] = replaced


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", SURVIVED)
def test_a_fault_that_can_be_survived_is(
    name: str, where: str, prefetch: int, bench: Bench
) -> None:
    bench.open(prefetch_blocks=prefetch)
    bench.disk.at = bench.place(where)
    bench.disk.seen.clear()
    bench.disk.fault = SURVIVED[name](bench)
    bench.assert_right()
    assert bench.disk.at in bench.disk.seen
    bench.assert_right()


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("where", PLACES)
def test_a_stall_costs_time_and_nothing_else(where: str, prefetch: int, bench: Bench) -> None:
    bench.open(prefetch_blocks=prefetch)
    bench.disk.at = bench.place(where)
    reached, let_go = threading.Event(), threading.Event()

    def stall(read: Read, view: memoryview, offset: int) -> int:
        reached.set()
        assert let_go.wait(WAIT_SECONDS)
        return read(view)

    def end_it() -> None:
        reached.wait(WAIT_SECONDS)
        let_go.set()

    bench.disk.fault = stall
    ending = threading.Thread(target=end_it)
    ending.start()
    bench.assert_right()
    ending.join(WAIT_SECONDS)
    assert reached.is_set()


@pytest.mark.parametrize("where", PLACES)
def test_closing_while_the_disk_stalls_gives_it_up_and_says_so(
    where: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stalled thread ends by itself when the disk answers, and takes its descriptor along."""
    from blockswap.store.readers import ReaderPool

    monkeypatch.setattr(streamer, "STUCK_SECONDS", 0.05)
    monkeypatch.setattr(ReaderPool.close, "__defaults__", (0.05,))
    model = bench.open(prefetch_blocks=1)
    bench.disk.at = bench.place(where)
    reached, let_go = threading.Event(), threading.Event()

    def stall(read: Read, view: memoryview, offset: int) -> int:
        done = read(view[:1])  # and needs to be asked again
        reached.set()
        let_go.wait(WAIT_SECONDS)
        return done

    readers = [t for t in threading.enumerate() if "blockswap-reader" in t.name]
    bench.disk.fault = stall
    with CtrlC() as ctrl_c:

        def interrupt() -> None:
            reached.wait(WAIT_SECONDS)
            ctrl_c(lambda view: 0, memoryview(b""), 0)

        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            bench.assert_right()
        interrupting.join(WAIT_SECONDS)
    with pytest.warns(UserWarning, match="still wait for the disk"):
        model.blockswap.close()
    bench.model = None
    let_go.set()
    for thread in readers:
        thread.join(WAIT_SECONDS)


@pytest.mark.parametrize("where", PLACES)
def test_ctrl_c_in_a_read_reaches_the_forward_and_a_retry_works(where: str, bench: Bench) -> None:
    bench.open(prefetch_blocks=0)
    bench.disk.at = bench.place(where)
    with CtrlC() as ctrl_c:
        bench.disk.fault = ctrl_c
        with pytest.raises(KeyboardInterrupt):
            bench.forward()
    bench.assert_right()


OPENING = ("EIO", "ENOMEM", "no memory in Python", "edited", "shrinking")


def opening_places(bench: Bench) -> list[int]:
    bench.open(blocks_to_swap=2)
    bench.model.blockswap.close()
    bench.model = None
    places = sorted({at for at in bench.disk.seen if at < len(bench.content)})
    return [places[0], places[len(places) // 2], places[-1]]


@pytest.mark.parametrize("where", range(3))
@pytest.mark.parametrize("name", OPENING)
def test_an_error_while_opening_undoes_it_all(name: str, where: int, bench: Bench) -> None:
    spoil, causes = ERRORS[name]
    bench.disk.at = opening_places(bench)[where]
    bench.disk.fault = spoil(bench)
    with pytest.raises(ReadError) as raised:
        bench.open(blocks_to_swap=2)
    assert f"from {bench.path} at byte" in str(raised.value)
    assert any(cause in str(raised.value) for cause in causes)
    bench.heal()
    bench.open(blocks_to_swap=2)
    bench.assert_right()


@pytest.mark.parametrize("where", range(3))
def test_ctrl_c_while_opening_undoes_it_all(where: int, bench: Bench) -> None:
    bench.disk.at = opening_places(bench)[where]
    with CtrlC() as ctrl_c:
        bench.disk.fault = ctrl_c
        with pytest.raises(KeyboardInterrupt):
            bench.open(blocks_to_swap=2)
    bench.heal()
    bench.open(blocks_to_swap=2)
    bench.assert_right()
