"""Pieces cover all tokens once, are balanced, never small, and attention gives the whole's bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from blockswap.pieces.cutting import cut, two_of_each_size


@given(tokens=st.integers(1, 200_000), most=st.integers(64, 20_000))
def test_pieces_cover_every_token_once_and_are_balanced(tokens: int, most: int) -> None:
    pieces = cut(tokens, most)
    sizes = [stop - start for start, stop in pieces]
    assert pieces[0][0] == 0
    assert pieces[-1][1] == tokens
    assert all(one[1] == other[0] for one, other in zip(pieces, pieces[1:], strict=False))
    if len(sizes) > 1:
        assert min(sizes) >= 64
        assert max(sizes) <= max(most + 72, 2 * 64 + 32)
        assert max(sizes) - min(sizes) <= 256 + 72


def test_a_clip_of_the_14b() -> None:
    sizes = [stop - start for start, stop in cut(75_600, 2048)]
    assert len(sizes) == 37
    assert (min(sizes), max(sizes)) == (1872, 2048)
    assert cut(4096, 4096) == ((0, 4096),)


def test_two_pieces_of_each_size_are_enough_to_follow() -> None:
    assert two_of_each_size(((0, 64), (64, 128), (128, 192), (192, 266))) == (
        (0, 64),
        (64, 128),
        (192, 266),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_attention_of_pieces_is_that_of_the_whole(dtype: torch.dtype, data: st.DataObject) -> None:
    odd = st.sampled_from([0, 1, 2, 3, 32, 33, 34, 35, 65, 97])
    tokens = data.draw(st.integers(1, 18)) * 64 + data.draw(odd)
    most = data.draw(st.sampled_from([64, 65, 100, 192, 256, 333, 700, 768, 1024]))
    draw = torch.Generator().manual_seed(tokens)
    query, key, value = (torch.randn(1, 2, tokens, 24, generator=draw).to(dtype) for _ in range(3))
    whole = F.scaled_dot_product_attention(query, key, value)
    for start, stop in cut(tokens, most):
        part = F.scaled_dot_product_attention(query[:, :, start:stop], key, value)
        assert torch.equal(part, whole[:, :, start:stop])
