"""The slab of a unit from a file: sector-aligned runs, and leaves moved where they lie too low."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from blockswap.layout.shares import Shares, side_by_side
from blockswap.store.file_slab import (
    JOIN_GAP_BYTES,
    LEAST_ALIGNMENT,
    SECTOR,
    Extent,
    FileSlab,
    file_slab,
    part_of,
)


@st.composite
def extents(draw: st.DrawFn) -> list[Extent]:
    """Leaves that do not overlap, in some shards, in any order, with small and large gaps."""
    found: list[Extent] = []
    for shard in range(draw(st.integers(1, 3))):
        end = draw(st.integers(0, 5000))
        for _ in range(draw(st.integers(0, 6))):
            gap = draw(st.sampled_from([0, 0, 1, 7, 8, 100, 4096, JOIN_GAP_BYTES + 1]))
            nbytes = draw(st.one_of(st.integers(0, 40), st.integers(0, 9000)))
            found.append(Extent(shard, end + gap, nbytes))
            end += gap + nbytes
    return list(draw(st.permutations(found)))


def byte_at(shard: int, offset: int) -> int:
    return (offset * 7 + offset // 256 + shard * 101) % 251


def fill(slab: FileSlab) -> bytearray:
    """What reading and settling make of the slab, with a file of known bytes."""
    memory = bytearray(slab.slab.nbytes)
    for run in slab.runs:
        for i in range(run.nbytes):
            memory[run.slab_offset + i] = byte_at(run.shard, run.offset + i)
    for move in slab.moves:
        piece = bytes(memory[move.source : move.source + move.nbytes])
        memory[move.target : move.target + move.nbytes] = piece
    return memory


@settings(deadline=None, max_examples=100)
@given(extents())
def test_every_leaf_has_the_bytes_of_the_file(given_extents: list[Extent]) -> None:
    slab = file_slab(given_extents)
    memory = fill(slab)
    for extent, offset in zip(given_extents, slab.slab.offsets, strict=True):
        found = memory[offset : offset + extent.nbytes]
        wanted = bytes(byte_at(extent.shard, extent.offset + i) for i in range(extent.nbytes))
        assert bytes(found) == wanted


@settings(deadline=None, max_examples=100)
@given(extents())
def test_reads_are_whole_sectors_and_do_not_overlap(given_extents: list[Extent]) -> None:
    slab = file_slab(given_extents)
    ends = 0
    for run in sorted(slab.runs, key=lambda run: run.slab_offset):
        assert run.offset % SECTOR == run.nbytes % SECTOR == run.slab_offset % SECTOR == 0
        assert 0 < run.needed <= run.nbytes < run.needed + SECTOR
        assert run.slab_offset >= ends
        ends = run.slab_offset + run.nbytes
    assert ends <= slab.slab.nbytes
    assert slab.slab.nbytes % SECTOR == 0
    assert slab.read_bytes == sum(run.nbytes for run in slab.runs)


@settings(deadline=None, max_examples=100)
@given(extents())
def test_every_leaf_is_aligned_and_apart_from_the_others(given_extents: list[Extent]) -> None:
    slab = file_slab(given_extents)
    taken = []
    for extent, offset in zip(given_extents, slab.slab.offsets, strict=True):
        assert offset % LEAST_ALIGNMENT == 0
        assert offset + extent.nbytes <= slab.slab.nbytes
        if extent.nbytes:
            taken.append((offset, offset + extent.nbytes))
    taken.sort()
    assert all(a[1] <= b[0] for a, b in zip(taken, taken[1:], strict=False))


def test_aligned_leaves_are_not_moved() -> None:
    slab = file_slab([Extent(0, 8192, 4096), Extent(0, 8192 + 4096, 64)])
    assert slab.moves == ()
    assert slab.slab.offsets == (0, 4096)
    assert len(slab.runs) == 1


def test_a_header_at_8_modulo_16_moves_every_leaf_once() -> None:
    slab = file_slab([Extent(0, 4104, 160), Extent(0, 4264, 160)])
    assert [move.nbytes for move in slab.moves] == [160, 160]
    assert slab.moves[0].source > slab.moves[1].source  # the last moves first: it makes room


def test_leaves_far_apart_are_read_apart() -> None:
    near = file_slab([Extent(0, 0, 100), Extent(0, 100 + JOIN_GAP_BYTES, 100)])
    far = file_slab([Extent(0, 0, 100), Extent(0, 101 + JOIN_GAP_BYTES, 100)])
    assert (len(near.runs), len(far.runs)) == (1, 2)


def test_shards_are_read_apart_and_nothing_needs_no_read() -> None:
    assert len(file_slab([Extent(0, 0, 9), Extent(1, 9, 9)]).runs) == 2
    assert file_slab([]).runs == ()
    assert file_slab([Extent(0, 8192, 0)]).runs == ()


def test_a_leaf_that_needs_less_stays_where_it_is_read_and_takes_no_less_room() -> None:
    strict = [Extent(0, 4104, 4088), Extent(0, 8192, 4096)]
    lenient = [replace(extent, alignment=8) for extent in strict]
    assert file_slab(strict).moves
    assert file_slab(lenient).moves == ()
    assert file_slab(lenient).slab.offsets == (8, 4096)
    assert file_slab(lenient).slab.nbytes == file_slab(strict).slab.nbytes


@settings(deadline=None, max_examples=60)
@given(extents(), st.integers(2, 5), st.sampled_from([64, 256, SECTOR]))
def test_parts_that_ranks_read_are_together_the_slab(
    given_extents: list[Extent], ranks: int, alignment: int
) -> None:
    """Each reads for no more bytes of the file than its own, and lays them as a whole read does."""
    whole = file_slab(given_extents)
    shares = Shares(whole.slab.nbytes, ranks, alignment)
    memory, read = bytearray(whole.slab.nbytes), []
    for rank in range(ranks):
        spans = side_by_side(shares.own(rank))
        part, own = part_of(whole, given_extents, spans)
        laid = fill(part)
        for start, size in spans:
            memory[start : start + size] = laid[start : start + size]
        read.append(sum(extent.nbytes for extent in own))
        assert sum(extent.nbytes for extent in own) <= sum(size for _, size in spans)
        # What is added up of a read lies in it, and a sector is read once.
        for extent in own:
            assert any(
                run.shard == extent.shard
                and run.offset <= extent.offset
                and extent.offset + extent.nbytes <= run.offset + run.needed
                for run in part.runs
            )
        sectors = [run.offset + at for run in part.runs for at in range(0, run.nbytes, SECTOR)]
        shards = [run.shard for run in part.runs for _ in range(0, run.nbytes, SECTOR)]
        assert len(set(zip(shards, sectors, strict=True))) == len(sectors)
    for extent, offset in zip(given_extents, whole.slab.offsets, strict=True):
        wanted = bytes(byte_at(extent.shard, extent.offset + i) for i in range(extent.nbytes))
        assert bytes(memory[offset : offset + extent.nbytes]) == wanted
    tails = shares.tail_bytes * (ranks - 1)
    nbytes = sum(extent.nbytes for extent in given_extents)
    assert nbytes <= sum(read) <= nbytes + tails
