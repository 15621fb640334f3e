import pytest, torch, tiny
from blockswap import BlockSwapArgs
from blockswap.nodes.patcher import Wish, swap_on_clone, holding_of

@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_eq(family):
    p = tiny.model(family)
    ref = tiny.sample(p)
    assert torch.isfinite(ref).all() and ref.abs().sum() > 0
    for kw in (dict(blocks="0,2,3-5"), dict(blocks_to_swap=3), {}):
        n = swap_on_clone(p, Wish(BlockSwapArgs(**kw)))
        out = tiny.sample(n)
        assert torch.equal(out, ref), kw
        h = holding_of(p.model)
        assert h and h.swap
        print(h.swap.report())
    assert torch.equal(tiny.sample(p), ref)
    assert holding_of(p.model) is None
