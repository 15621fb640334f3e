"""The reads that a unit is cut into, and what becomes of the page cache behind them."""

import os
from pathlib import Path

import pytest
import torch
from test_streamed_file import buffer, header_of, read_unit

from blockswap.store.disk import PIECE_BYTES, DiskStore, DiskUnit
from blockswap.store.file_slab import SECTOR, Extent
from blockswap.store.landing import Landing


def test_a_unit_larger_than_a_piece_is_read_in_pieces(tmp_path: Path) -> None:
    big = tmp_path / "big.bin"
    data = torch.arange(2 * PIECE_BYTES // 8 + 100, dtype=torch.int64)
    big.write_bytes(data.numpy().tobytes())
    units = [DiskUnit("blocks.0", (Extent(0, 24, data.nbytes - 24),))]
    store = DiskStore([header_of(big)], units)
    memory = buffer(store.slabs[0].slab.nbytes)
    assert len(store.pieces(0, Landing.at(memory.data_ptr()))) == 3
    moved = read_unit(store, memory)
    at = store.slab_offsets(0)[0]
    found = memory[at : at + data.nbytes - 24].clone().view(torch.int64)
    assert torch.equal(found, data[3:])
    assert moved == data.nbytes - 24
    assert set(store.modes) <= ({"direct", "buffered"} if hasattr(os, "preadv") else {"plain"})
    store.close()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no page can be dropped here")
@pytest.mark.parametrize("direct", [False, True])
def test_what_was_read_in_pieces_is_dropped_once_more_as_a_whole(
    direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large page that two pieces share outlives each of the drops behind them."""
    file, dropped = tmp_path / "unit.bin", []
    file.write_bytes(os.urandom(4 * SECTOR))
    units = [DiskUnit("blocks.0", (Extent(0, SECTOR, 3 * SECTOR),))]
    store = DiskStore([header_of(file)], units, piece_bytes=SECTOR, direct=direct)
    memory = buffer(store.slabs[0].slab.nbytes)
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, at, size, how: dropped.append((at, size)))
    read_unit(store, memory)
    pieces = [(SECTOR * i, SECTOR) for i in (1, 2, 3)]
    assert dropped == ([*pieces, (SECTOR, 3 * SECTOR)] if "buffered" in store.modes else [])
    store.close()


@pytest.mark.parametrize(("piece_bytes", "pieces"), [(SECTOR, 4), (SECTOR + 1, 2), (1 << 30, 1)])
def test_the_size_of_a_read_can_be_chosen(tmp_path: Path, piece_bytes: int, pieces: int) -> None:
    file = tmp_path / "unit.bin"
    file.write_bytes(os.urandom(4 * SECTOR))
    units = [DiskUnit("blocks.0", (Extent(0, 16, 4 * SECTOR - 16),))]
    store = DiskStore([header_of(file)], units, piece_bytes=piece_bytes)
    memory = buffer(store.slabs[0].slab.nbytes)
    assert len(store.pieces(0, Landing.at(memory.data_ptr()))) == pieces
    read_unit(store, memory)
    at = store.slab_offsets(0)[0]
    assert bytes(memory[at : at + 4 * SECTOR - 16]) == file.read_bytes()[16:]
    store.close()
