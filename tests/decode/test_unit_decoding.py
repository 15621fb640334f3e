"""A unit's decoding: which leaves have a step, in exactly the bytes that it says."""

import pytest
import torch

from blockswap.decode.additions import LowRank, Scale, Strength
from blockswap.decode.merge import Merged
from blockswap.decode.steps import Cast, Cost
from blockswap.decode.unit_decoding import (
    UnitDecoding,
    decoded_once,
    joined_form,
    plain_form,
    stored_leaf,
)
from blockswap.layout.slab import pack

HALF, FULL = stored_leaf("bfloat16", (4, 3)), stored_leaf("float32", (4, 3))


def test_equal_forms_are_not_decoded() -> None:
    form = plain_form(HALF, HALF)
    decoding = UnitDecoding((form, form))
    assert form.steps == ()
    assert decoding.decoded == ()
    assert decoding.buffer_bytes == 0
    assert decoding.cost == Cost()
    assert not decoding.rests_stored


def test_each_leaf_is_decoded_from_its_own_arrays() -> None:
    joined = joined_form([stored_leaf("bfloat16", (4,)), stored_leaf("bfloat16", (8,))], FULL)
    decoding = UnitDecoding((plain_form(FULL, FULL), joined, plain_form(HALF, FULL)))
    assert decoding.stored == (FULL, *joined.stored, HALF)
    assert decoding.buffer_bytes == pack([FULL, FULL]).nbytes
    assert decoding.cost == joined.steps[0].cost + Cast(HALF, FULL).cost
    stored = [torch.randn(leaf.shape).to(getattr(torch, leaf.dtype)) for leaf in decoding.stored]
    outs = [torch.empty(4, 3) for _ in decoding.decoded]
    runs = decoding.prepare(stored, outs, torch.empty(0, dtype=torch.uint8))
    for _ in range(2):  # what was decoded before does not matter
        for run in runs:
            run()
        assert torch.equal(outs[0], torch.cat(stored[1:3]).float().view(4, 3))
        assert torch.equal(outs[1], stored[3].float())


def test_the_smaller_form_rests_in_ram() -> None:
    assert UnitDecoding((plain_form(HALF, FULL),)).rests_stored
    assert not UnitDecoding((plain_form(FULL, HALF),)).rests_stored


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "two, then dora"])
@pytest.mark.parametrize("computed", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16", "float8_e4m3fn"])
def test_a_weight_in_pieces_is_merged_as_one_in_one_piece(
    stored: str, computed: str, dora: bool
) -> None:
    draw = torch.Generator().manual_seed(5)
    whole = (torch.randn(6, 4, generator=draw) * 3).to(getattr(torch, stored))
    leaf = stored_leaf(computed, (6, 4))
    scale = Scale(Strength(0.7))
    merged = [Merged(LowRank((2, 4), (6, 2), scale))] * (2 if dora else 1)
    shapes: list[tuple[int, ...]] = [(2, 4), (6, 2)] * len(merged)
    if dora:
        merged[-1] = Merged(merged[-1].addition, magnitude=True)
        shapes.append((6,))
    factors = [torch.randn(shape, generator=draw) for shape in shapes]
    leaves = [stored_leaf("float32", shape) for shape in shapes]
    once = plain_form(stored_leaf(stored, (6, 4)), leaf).merged_with(merged, leaves)
    pieces = [whole.reshape(-1)[16:], whole.reshape(-1)[:16]]
    swapped = torch.cat(pieces).view(6, 4)
    joined = joined_form([stored_leaf(stored, (8,)), stored_leaf(stored, (16,))], leaf)
    joined = joined.merged_with(merged, leaves)
    wanted = decoded_once(once, [swapped, *factors], torch.device("cpu"))
    found = decoded_once(joined, [*pieces, *factors], torch.device("cpu"))
    assert torch.equal(found, wanted)
