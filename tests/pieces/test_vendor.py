"""Wan-Video's own blocks in pieces: the whole's bits, or whole with a sentence."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import vendor_wan

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.pieces import VENDOR, Pieces, family_of, why_never

TOKENS = 245  # of which 240 and 144 are the clips'


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def made(kind: str = "t2v") -> tuple[Any, list[torch.Tensor]]:
    torch.manual_seed(len(kind))
    model = vendor_wan.WanModel(kind).eval().requires_grad_(False)
    hidden = torch.randn(2, TOKENS, 48).to(torch.bfloat16)  # the model widens it
    text = torch.randn(2, 512 + 20 * (kind == "i2v"), 32)
    return model, [hidden, torch.randn(2, 6, 48), text]


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_output_is_the_wholes(kind: str) -> None:
    model, inputs = made(kind)
    assert family_of(model) is VENDOR
    assert why_never(model, VENDOR) is None
    whole, kept = model(*inputs), inputs[0].clone()
    for tokens in (64, 100):
        said: list[str] = []
        pieces = Pieces(model, tokens, said.append, family=VENDOR)
        vendor_wan.flash_calls.clear()
        cut = model(*inputs)
        pieces.remove()
        assert max(vendor_wan.flash_calls) < TOKENS
        assert cut.dtype == whole.dtype == torch.float32
        assert torch.equal(cut, whole)
        assert not said
    assert torch.equal(inputs[0], kept)


def test_streamed_as_asked() -> None:
    model, inputs = made()
    whole = model(*inputs)
    with swap_blocks(model, BlockSwapArgs(blocks="0-1", chunk_tokens=64), device="cpu") as swap:
        assert torch.equal(model(*inputs), whole)
        assert "in pieces of at most 64 tokens, as asked" in str(swap.report())
        assert "run whole" not in str(swap.report())


def test_a_window_makes_a_block_run_whole() -> None:
    model, inputs = made()
    model.blocks[1].self_attn.window_size = (8, 8)
    whole, said = model(*inputs), list[str]()
    pieces = Pieces(model, 64, said.append, family=VENDOR)
    assert torch.equal(model(*inputs), whole)
    pieces.remove()
    assert [said[0]] == said
    assert "blocks.1 runs whole" in said[0]
    assert "looks through a window" in said[0]


OTHERS = {
    "rope_apply": "lambda x, *more: before(x, *more) * 1.01",
    "forward": "lambda self, x: before(self, x) * x.mean(1, keepdim=True)",
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("by", ["itself", "other code"])
def test_another_version_runs_whole(name: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = made()
    place: Any = vendor_wan.WanRMSNorm if name == "forward" else vendor_wan
    file = str(vendor_wan.__file__) if by == "itself" else "elsewhere.py"
    names = {"before": getattr(place, name)}
    monkeypatch.setattr(place, name, eval(compile(OTHERS[name], file, "eval"), names))
    why = why_never(model, VENDOR)
    assert why is not None
    said = "gave another result in pieces than whole", "was replaced by other code"
    assert said[by == "other code"] in why
    args = BlockSwapArgs(blocks="0-1", chunk_tokens=64)
    whole = model(*inputs)
    with swap_blocks(model, args, device="cpu") as swap:
        assert torch.equal(model(*inputs), whole)
        assert "all blocks run whole, although pieces of 64 tokens" in str(swap.report())
