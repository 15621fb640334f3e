"""Staging memory in powers of two: what it locks, and slabs that cross from one to the next."""

import ctypes
import random

from hypothesis import given
from hypothesis import strategies as st

from blockswap.layout.slab import MAX_CHUNKS, staging_chunks
from blockswap.store.landing import Landing


@given(st.integers(1, 1 << 34))
def test_chunks_are_powers_of_two_that_hold_the_bytes_and_lock_little_more(nbytes: int) -> None:
    chunks = staging_chunks(nbytes)
    assert len(chunks) <= MAX_CHUNKS
    assert all(chunk & (chunk - 1) == 0 for chunk in chunks)
    assert list(chunks) == sorted(chunks, reverse=True)
    assert nbytes <= sum(chunks) <= nbytes * 16 / 15 + 1
    assert sum(staging_chunks(sum(chunks))) == sum(chunks), "a plan's bytes make the same memory"


def test_chunks_of_a_14b_block_lock_a_quarter_percent_more_and_not_half_as_much_again() -> None:
    mib = 1 << 20
    assert staging_chunks(702_790_656) == (512 * mib, 128 * mib, 16 * mib, 16 * mib)
    assert staging_chunks(0) == ()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.data())
def test_a_move_up_across_stretches_is_the_move_of_one_piece(sizes: list[int], data: st.DataObject):
    total = sum(sizes)
    target = data.draw(st.integers(0, total))
    source = data.draw(st.integers(0, target))
    nbytes = data.draw(st.integers(0, total - target))
    content = random.Random(total).randbytes(total)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    stretches = [
        ctypes.create_string_buffer(content[start : start + size], size)
        for start, size in zip(starts, sizes, strict=True)
    ]
    landing = Landing(tuple(starts), tuple(map(ctypes.addressof, stretches)))
    landing.move_up(source, target, nbytes)
    expected = bytearray(content)
    expected[target : target + nbytes] = content[source : source + nbytes]
    assert b"".join(stretch.raw for stretch in stretches) == bytes(expected)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.data())
def test_spans_cover_the_bytes_once_and_end_where_stretches_end(
    sizes: list[int], data: st.DataObject
) -> None:
    starts = tuple(sum(sizes[:i]) for i in range(len(sizes)))
    landing = Landing(starts, tuple(1000 * (i + 1) for i in range(len(sizes))))
    start = data.draw(st.integers(0, sum(sizes) - 1))
    nbytes = data.draw(st.integers(1, sum(sizes) - start))
    seen = []
    for at, size, base in landing.spans(start, nbytes):
        for offset in range(at, at + size):
            i = max(i for i, first in enumerate(starts) if first <= offset)
            assert base + offset == 1000 * (i + 1) + offset - starts[i]
            seen.append(offset)
    assert seen == list(range(start, start + nbytes))
