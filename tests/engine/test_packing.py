"""Arena packing: at most four runs a unit, nothing overlaps, little is wasted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockswap.layout.slab import LEAF_ALIGNMENT, align_up
from blockswap.layout.values import Leaf, TensorSpec, UnitLayout
from blockswap.store.arena import Arena, pageable
from blockswap.store.packing import MAX_RUNS, Packing, pack_arena


def unit(index: int, sizes: list[int]) -> UnitLayout:
    tensors = tuple(
        TensorSpec(f"t{n}", (Leaf((), "uint8", (size,), (1,)),)) for n, size in enumerate(sizes)
    )
    return UnitLayout(f"blocks.{index}", "block", index, tensors)


def units_of(sizes: list[list[int]]) -> list[UnitLayout]:
    return [unit(index, leaves) for index, leaves in enumerate(sizes)]


# Norms and biases beside matrices, and everything between.
LEAF_BYTES = st.one_of(
    st.integers(0, 300), st.integers(1, 3000), st.sampled_from([256, 4096, 20_000])
)
SIZES = st.lists(st.lists(LEAF_BYTES, max_size=12), max_size=12)


def check(units: list[UnitLayout], packing: Packing) -> None:
    """Against a brute-force picture of memory: every byte has one owner, every leaf is whole."""
    owner: list[dict[int, int]] = [{} for _ in packing.chunk_bytes]
    for number, (layout, packed) in enumerate(zip(units, packing.units, strict=True)):
        assert len(packed.runs) <= MAX_RUNS
        covered: list[tuple[int, int]] = []
        for run in packed.runs:
            assert run.chunk_offset >= 0
            assert run.chunk_offset + run.nbytes <= packing.chunk_bytes[run.chunk]
            covered.append((run.slab_offset, run.slab_offset + run.nbytes))
            for start in range(run.chunk_offset, run.chunk_offset + run.nbytes, LEAF_ALIGNMENT):
                assert owner[run.chunk].setdefault(start, number) == number
        ends = 0
        for start, end in sorted(covered):
            assert start == ends, "runs fill the slab without gap or overlap"
            ends = end
        assert ends == packed.slab.nbytes
        taken: list[tuple[int, int]] = []
        for leaf, offset in zip(layout.leaves, packed.slab.offsets, strict=True):
            assert offset % LEAF_ALIGNMENT == 0
            whole = any(start <= offset and offset + leaf.nbytes <= end for start, end in covered)
            assert whole or not leaf.nbytes, "a leaf never spans two runs"
            if leaf.nbytes:
                taken.append((offset, align_up(offset + leaf.nbytes, LEAF_ALIGNMENT)))
        taken.sort()
        assert all(a[1] <= b[0] for a, b in zip(taken, taken[1:], strict=False))


@settings(deadline=None, max_examples=150)
@given(SIZES)
def test_any_layout_is_packed_without_overlap_in_at_most_four_runs(sizes: list[list[int]]) -> None:
    units = units_of(sizes)
    check(units, pack_arena(units))


@settings(deadline=None, max_examples=100)
@given(SIZES)
def test_chunks_are_powers_of_two(sizes: list[list[int]]) -> None:
    assert all(c & (c - 1) == 0 and c > 0 for c in pack_arena(units_of(sizes)).chunk_bytes)


WAN_BLOCKS = {
    "1.3B": (1536, 8960, 30, 2),
    "1.3B fp32": (1536, 8960, 30, 4),
    "14B": (5120, 13824, 40, 2),
    "14B fp8": (5120, 13824, 40, 1),
    "5B": (3072, 14336, 30, 2),
}


@pytest.mark.parametrize("count", [1, 2, 7, 20, 40])
@pytest.mark.parametrize("name", WAN_BLOCKS)
def test_wan_blocks_waste_under_15_percent(name: str, count: int) -> None:
    dim, ffn, blocks, item = WAN_BLOCKS[name]
    square, vector = dim * dim * item, dim * item
    leaves = [6 * vector, *[square, vector] * 8, *[vector] * 6]
    leaves += [dim * ffn * item, ffn * item, dim * ffn * item, vector]
    units = units_of([leaves] * min(count, blocks))
    packing = pack_arena(units)
    check_runs = [len(packed.runs) for packed in packing.units]
    assert max(check_runs) <= MAX_RUNS
    needed = sum(layout.nbytes for layout in units)
    assert sum(packing.chunk_bytes) <= needed * 1.15


class FakeLender:
    """Lends pinned memory up to a limit, as a system with a small locked-memory limit does."""

    def __init__(self, limit: int) -> None:
        self.limit, self.lent, self.released = limit, 0, 0

    def pin(self, nbytes: int) -> torch.Tensor | None:
        if self.lent + nbytes > self.limit:
            return None
        self.lent += nbytes
        return torch.empty(nbytes, dtype=torch.uint8)

    def release_cached_host_memory(self) -> None:
        self.released += 1


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(0, 400_000), st.integers(0, 400_000))
def test_every_leaf_keeps_its_bytes_in_the_arena(
    sizes: list[list[int]], limit: int, budget: int
) -> None:
    units = units_of(sizes)
    arena = Arena(units, lender=FakeLender(limit), pin_budget=budget, unpinned=pageable)
    views = [arena.take(index) for index in range(len(units))]
    for number, leaves in enumerate(views):
        for position, view in enumerate(leaves):
            view.fill_((number * 31 + position) % 251)
    for number, leaves in enumerate(views):
        assert [v.numel() for v in leaves] == sizes[number]
        slab = torch.zeros(arena.packing.units[number].slab.nbytes, dtype=torch.uint8)
        for source, offset in arena.runs(number):
            slab[offset : offset + source.numel()] = source
        for position, offset in enumerate(arena.packing.units[number].slab.offsets):
            found = slab[offset : offset + sizes[number][position]]
            assert bool((found == (number * 31 + position) % 251).all())
    assert arena.pinned_bytes <= min(limit, budget)
    for index in range(len(units)):
        arena.release(index)
    assert arena.pinned_bytes == arena.pageable_bytes == 0
