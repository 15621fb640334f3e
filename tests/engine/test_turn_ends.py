"""A turn that ends after so many forwards: nothing is brought for another, which may come."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Shelf, expect_refusal, forward, opened, reference
from seams import collect_pools, wait_for_readers

from blockswap.errors import ArgsError, StateError
from blockswap.store import ahead
from blockswap.store.ahead import ReadAhead, Stretch, first_of, take
from blockswap.store.file_io import StreamedFile
from blockswap.stream.pool.pool import Pool

ARGS = {"blocks_to_swap": 5, "prefetch_blocks": 1}
MIB = 2**20


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    return collect_pools(monkeypatch)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.mark.parametrize("store", ["ram", "pageable", "disk", "file-both"])
def test_nothing_is_brought_for_a_forward_that_does_not_come(
    store: str, sim_device: torch.device, pools: list[Pool], shelf: Shelf
) -> None:
    with opened(store, "original", sim_device, ARGS, shelf=shelf) as (model, swap), torch.no_grad():
        events: list[str] = []
        model.blocks[-1].register_forward_hook(lambda *_: events.append("the last block ends"))
        swap.ends_after(3, lambda: events.append("nothing more is needed"))
        for _ in range(3):
            out = forward(model, "original", sim_device)
        wait_for_readers(pools[-1])
        counted = swap.measured().counters
        assert counted.copied_bytes == 3 * swap.plan.copied_bytes_per_forward
        assert counted.read_bytes == 3 * swap.plan.read_bytes_per_forward
        assert events == ["the last block ends"] * 2 + ["nothing more is needed", events[0]]
        assert torch.equal(out, reference("original", sim_device))
        assert torch.equal(forward(model, "original", sim_device), out), "one that was not told of"


def test_on_the_cpu_from_the_file(pools: list[Pool], shelf: Shelf) -> None:
    device = torch.device("cpu")
    with opened("disk", "original", device, ARGS, shelf=shelf) as (model, swap), torch.no_grad():
        asked: list[int] = []
        swap.ends_after(2, lambda: asked.append(swap.measured().counters.forwards))
        for _ in range(2):
            assert torch.equal(forward(model, "original", device), reference("original", device))
        wait_for_readers(pools[-1])
        assert swap.measured().counters.reads == 2 * len(swap.plan.streamed)
        assert asked == [2]


def test_refusals(shelf: Shelf) -> None:
    device = torch.device("cpu")
    with opened("disk", "mini", device, ARGS, shelf=shelf) as (_, swap):
        for wrong in (0, -1, True, 1.5):
            expect_refusal(lambda wrong=wrong: swap.ends_after(wrong), ArgsError, "1 or more")
    expect_refusal(lambda: swap.ends_after(1), StateError, "is closed")


class TestReadAhead:
    """What is asked of the page cache, and who finds it there."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "file"
        path.write_bytes(os.urandom(MIB) * 4)
        return path

    @pytest.fixture
    def reading(self, path: Path) -> Any:
        reading = ReadAhead([Stretch(path, 0, MIB), Stretch(path, MIB, MIB)])
        reading._ask()
        yield reading
        reading.stop()

    def test_each_byte_is_taken_once(self, path: Path, reading: ReadAhead) -> None:
        place = path.stat().st_dev, path.stat().st_ino
        assert reading.asked_bytes == 2 * MIB
        assert take(*place, MIB // 2, MIB)
        assert not take(*place, MIB // 2, MIB)
        assert not take(*place, 2 * MIB - 4096, 8192), "part of it was not asked for"
        assert take(*place, 0, MIB // 2)
        assert take(*place, 3 * MIB // 2, MIB // 2)
        assert ahead._asked[place] == []
        assert not take(place[0], place[1] + 1, 0, 1)

    def test_neighbours_read_the_sector_that_they_share(self, path: Path, reading: Any) -> None:
        place = path.stat().st_dev, path.stat().st_ino
        assert take(*place, 0, 3 * 4096)
        assert take(*place, 2 * 4096, 9 * 4096)

    def test_what_nobody_takes_is_forgotten(self, path: Path, reading: ReadAhead) -> None:
        reading.stop()
        assert not take(path.stat().st_dev, path.stat().st_ino, 0, 4096)
        reading._ask()
        assert reading.asked_bytes == 2 * MIB, "and nothing is asked for after it"

    def test_a_read_finds_it_there_and_the_disk_else(
        self, path: Path, reading: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from blockswap.layout.stamp import stamp_of

        class Header:
            pass

        header: Any = Header()
        header.path, header.stamp = path, stamp_of(path.stat())
        descriptors, real = [], os.preadv

        def preadv(fd: int, buffers: Any, offset: int) -> int:
            descriptors.append(fd)
            return real(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)
        file, found = StreamedFile(header), torch.empty(MIB + 4096, dtype=torch.uint8)
        view = memoryview(found[-found.data_ptr() % 4096 :][:MIB].numpy())
        try:
            if file.mode != "direct":
                pytest.skip("no O_DIRECT here")
            for _ in range(2):
                file.read(0, view, MIB)
                assert bytes(view) == path.read_bytes()[:MIB]
            assert descriptors == [file._buffered, file._direct]
        finally:
            file.close()

    def test_a_file_that_is_gone_is_nobodys_error(self, path: Path) -> None:
        path.unlink()
        reading = ReadAhead([Stretch(path, 0, MIB)])
        reading._ask()
        assert reading.asked_bytes == 0

    def test_no_more_than_is_left(self, path: Path) -> None:
        two = [Stretch(path, 0, MIB), Stretch(path, 2 * MIB, 20 * MIB)]
        assert first_of(two, 18 * MIB) == (two[0], Stretch(path, 2 * MIB, 16 * MIB))
        assert first_of(two, 8 * MIB) == (two[0],)
        assert first_of(two, 21 * MIB) == tuple(two)
        assert first_of(two, 0) == first_of(two, -5) == ()
