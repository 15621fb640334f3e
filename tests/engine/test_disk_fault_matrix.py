"""Every fault of a disk at the first, a middle and the last read of a forward, on every path.

An error reaches the forward that needed the block, once, with file, block, byte and cause; a fault
that can be survived costs nothing but time; nothing hangs; a retry after the cause is gone is right
to the last bit; afterwards threads, descriptors and memory are as before. The table of all faults
and their tests is in `test_real_faults.py`.
"""

import errno
import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from cases import Shelf, forward, reference, skeleton
from disk_seam import WAIT_SECONDS, CtrlC, Disk, Fault, Read, deadline, record_reads, small_reads
from seams import collect_pools, wait_for_readers
from test_streamed_file import PLATFORMS

from blockswap import BlockSwapArgs, open_transformer
from blockswap.errors import ReadError
from blockswap.stream import streamer

PLACES = ("first", "middle", "last")


@dataclass
class Bench:
    """A model on a disk that can be spoilt. `owners`: which units a read at a byte is for."""

    path: Path
    device: torch.device
    disk: Disk
    owners: dict[int, list[str]]
    content: bytes
    stamp: os.stat_result
    model: Any = None
    healing: list[Callable[[], None]] = field(default_factory=list)

    def open(self, **args: Any) -> Any:
        # Not a dictionary: in those 0 means automatic, as in other packs.
        wanted = BlockSwapArgs(**{"blocks_to_swap": 5, "prefetch_blocks": 1, **args})
        self.model = open_transformer(
            self.path, wanted, device=self.device, skeleton=skeleton("mini")
        )
        return self.model

    def forward(self) -> torch.Tensor:
        with torch.no_grad():
            return forward(self.model, "mini", self.device)

    def assert_right(self) -> None:
        for _ in range(2):
            assert torch.equal(self.forward(), reference("mini", self.device))

    def place(self, where: str) -> int:
        """The byte of a read of a forward; the model must have been opened with all streamed."""
        self.owners.clear()
        self.assert_right()
        places = sorted(self.owners)
        assert len(places) > 5, "some block takes several reads"
        return {"first": places[0], "middle": places[len(places) // 2], "last": places[-1]}[where]

    def heal(self) -> None:
        """The cause is gone: the disk reads, and the file is what it was."""
        self.disk.heal()
        if self.model is not None:
            # What was read before would pass for what is there after: the stamp is forged below.
            wait_for_readers(self.model.blockswap._streamer._pool)
        with self.path.open("r+b") as file:
            file.write(self.content)
            file.truncate()
        os.utime(self.path, ns=(self.stamp.st_atime_ns, self.stamp.st_mtime_ns))


@pytest.fixture
def platform(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "as it is"))


@contextmanager
def memory_given_back(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slots and staging buffers are gone at the end, and on the simulator every byte there was."""
    pools = collect_pools(monkeypatch)
    gc.collect()
    before = held_by(device)
    yield
    memory = [weakref.ref(slot.memory) for pool in pools for slot in pool.slots]
    memory += [weakref.ref(c) for pool in pools for buffer in pool.staging for c in buffer.chunks]
    pools.clear()
    gc.collect()
    assert [kept for kept in memory if kept() is not None] == []
    assert held_by(device) == before


def held_by(device: torch.device) -> tuple[int, ...]:
    """Bytes of the device and pinned ones, where somebody counts them."""
    if device.type == "cpu":
        return ()
    import simaccel

    counters = simaccel.counters()
    return counters.device_bytes, counters.pinned_bytes


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
