"""A disk that fails under a forward: one error that names the place, no hang, a retry works."""

import linecache
import os
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from cases import Shelf, forward, fresh, opened, reference, skeleton, stores
from disk_seam import Disk
from file_faults import broken
from test_streamed_file import PLATFORMS

from blockswap import open_transformer
from blockswap.errors import ReadError
from blockswap.store.disk import DiskStore
from engine_seams import collect_pools, stall_reads, wait_for_readers

ARGS = {"blocks_to_swap": 5}
# Every so many lines an interrupt; `make every-point` strikes more of them.
STRIDE = 29 if os.environ.get("BLOCKSWAP_EVERY_POINT") else 89


@pytest.fixture
def path(shelf: Shelf, tmp_path: Path) -> Path:
    """A checkpoint of its own, to be spoilt."""
    copy = tmp_path / "wan.safetensors"
    copy.write_bytes(shelf.file("mini").read_bytes())
    return copy


def open_mini(path: Path, device: torch.device, **args: Any) -> Any:
    return open_transformer(path, {**ARGS, **args}, device=device, skeleton=skeleton("mini"))


@pytest.mark.parametrize("name", PLATFORMS)
def test_model_is_bit_equal_on_every_platform(
    name: str, device: torch.device, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, mode = PLATFORMS[name]
    if change is not None:
        change(monkeypatch)
    model = open_mini(path, device)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(forward(model, "mini", device), reference("mini", device))
    said = " ".join(model.blockswap.measured().sentences)
    if mode:
        assert {"buffered": "O_DIRECT", "plain": "os.preadv"}[mode] in said
    model.blockswap.close()


@pytest.mark.parametrize("prefetch", [0, 1, 2])
@pytest.mark.parametrize("block", [0, 2, 4])
def test_an_error_of_one_block_reaches_the_forward_once_and_a_retry_works(
    block: int,
    prefetch: int,
    device: torch.device,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = open_mini(path, device, prefetch_blocks=prefetch)
    failing = [True]
    reads: list[str] = []
    read_piece = DiskStore.read_piece

    def spoilt_by_name(self: Any, index: int, *args: Any) -> None:
        if failing[0] and self._units[index].name == f"blocks.{block}":
            reads.append("failed")
            file, run = self._files[0], args[0]
            raise ReadError(
                f"reading blocks.{block} from {file.path} at byte {run.offset} failed: broken"
            )
        read_piece(self, index, *args)

    monkeypatch.setattr(DiskStore, "read_piece", spoilt_by_name)
    for _ in range(2):
        with pytest.raises(ReadError, match=rf"blocks\.{block} from .*wan\.safetensors at byte"):
            with torch.no_grad():
                forward(model, "mini", device)
    failing[0] = False
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(forward(model, "mini", device), reference("mini", device))
    assert "failed" in reads
    model.blockswap.close()


def test_eio_of_the_system_call_names_file_block_offset_and_cause(
    device: torch.device, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    model = open_mini(path, device)

    disk.fault = broken
    with pytest.raises(ReadError) as raised, torch.no_grad():
        forward(model, "mini", device)
    disk.heal()
    for word in ("blocks.0", str(path), "at byte", "Input/output error"):
        assert word in str(raised.value)
    with torch.no_grad():
        assert torch.equal(forward(model, "mini", device), reference("mini", device))
    model.blockswap.close()


def test_close_works_while_the_disk_is_broken(
    device: torch.device, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())
    disk = Disk(monkeypatch)
    model = open_mini(path, device)

    disk.fault = broken
    with pytest.raises(ReadError), torch.no_grad():
        forward(model, "mini", device)
    model.blockswap.close()
    assert set(threading.enumerate()) == before


def test_a_file_written_to_while_streaming_stops_the_forward(
    device: torch.device, path: Path
) -> None:
    model = open_mini(path, device)
    with torch.no_grad():
        forward(model, "mini", device)
        os.utime(path, ns=(1, 1))
        with pytest.raises(ReadError, match="was written to"):
            for _ in range(3):  # what was read ahead is still good
                forward(model, "mini", device)
    model.blockswap.close()


def test_a_file_cut_while_streaming_stops_the_forward(device: torch.device, path: Path) -> None:
    model = open_mini(path, device)
    with torch.no_grad():
        forward(model, "mini", device)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(ReadError, match=r"wan\.safetensors"):
            for _ in range(3):
                forward(model, "mini", device)
    model.blockswap.close()


def test_a_file_replaced_while_streaming_keeps_serving_the_one_that_was_opened(
    device: torch.device, path: Path
) -> None:
    model = open_mini(path, device)
    other = path.with_suffix(".other")
    other.write_bytes(bytes(path.stat().st_size))
    os.replace(other, path)
    with torch.no_grad():
        for _ in range(2):
            try:
                assert torch.equal(forward(model, "mini", device), reference("mini", device))
            except ReadError as error:  # a reader may have opened the file only now: see plain
                assert not hasattr(os, "preadv")
                assert "was replaced by another file" in str(error)
    model.blockswap.close()


def test_a_disk_that_stalls_only_costs_time(
    device: torch.device, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    stall_reads(
        monkeypatch,
        before={"blocks.1": lambda: time.sleep(0.2), "blocks.3": lambda: time.sleep(0.1)},
    )
    model = open_mini(path, device)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(forward(model, "mini", device), reference("mini", device))
    assert model.blockswap.measured().counters.host_waits > 0
    model.blockswap.close()


class InterruptAt:
    """Raises KeyboardInterrupt at the n-th line that this thread runs in the stream rooms."""

    def __init__(self, line: int) -> None:
        self._left = line
        self.raised = False
        self._thread = threading.get_ident()

    def __enter__(self) -> "InterruptAt":
        self._before = sys.gettrace()  # coverage's own
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if "/blockswap/st" not in frame.f_code.co_filename:
            return None
        return self._line

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line" and not self.raised and not _at_with(frame):
            self._left -= 1
            if self._left < 0:
                self.raised = True
                raise KeyboardInterrupt
        return self._line


def _at_with(frame: FrameType) -> bool:
    """Whether the line is a `with`, which runs on leaving, too: no interrupt comes in there."""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.lstrip().startswith("with ")


@pytest.mark.parametrize("phase", range(4))
def test_ctrl_c_at_any_line_of_the_engine_is_survived(
    phase: int, device: torch.device, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One forward is interrupted at a line, the next two must be right, then all is restored."""
    collected = collect_pools(monkeypatch)
    expected = reference("mini", device)
    for store in stores(device):
        if store == "file-ram":
            continue
        # Both tiers in one forward need more blocks: then copies wait for reads and behind them.
        args = {"blocks_to_swap": 5 if store == "file-both" else 3, "prefetch_blocks": 1}
        with opened(store, "mini", device, args, shelf=shelf) as (model, _), torch.no_grad():
            for line in range(phase * 3, 4000, STRIDE):
                with InterruptAt(line) as interrupt:
                    try:
                        forward(model, "mini", device)
                    except KeyboardInterrupt:
                        assert interrupt.raised
                for _ in range(2):
                    assert torch.equal(forward(model, "mini", device), expected), (store, line)
                if not interrupt.raised:
                    wait_for_readers(collected[-1])
                    break
            assert line > STRIDE * 3
            assert not any(staging.is_claimed for staging in collected[-1].staging), store
        if store in ("ram", "pageable"):
            for name, value in fresh("mini").named_parameters():
                assert torch.equal(model.get_parameter(name), value), (store, name)
                assert model.get_parameter(name).device.type == "cpu"
