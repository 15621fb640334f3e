import pytest, torch, tiny, simulated
import comfy.model_base
from blockswap import BlockSwapArgs
from blockswap.nodes.patcher import Wish, swap_on_clone, holding_of

def test_sim(sim_device, sim, monkeypatch):
    simulated.point_at(sim_device, monkeypatch)
    monkeypatch.setattr(comfy.model_base.BaseModel, "memory_required", lambda *a, **k: 1<<20)
    p = tiny.model("t2v")
    assert p.load_device == sim_device
    ref = tiny.sample(p)
    assert torch.isfinite(ref).all() and ref.abs().sum() > 0
    for kw in (dict(blocks="0,2,3-5"), dict(blocks_to_swap=3), {}):
        n = swap_on_clone(p, Wish(BlockSwapArgs(**kw)))
        out = tiny.sample(n)
        assert torch.equal(out, ref), kw
        h = holding_of(p.model)
        assert h and h.swap
        print(h.swap.report())
        before = sim.counters()
        out = tiny.sample(n)
        assert torch.equal(out, ref), kw
        assert holding_of(p.model) is h
        after = sim.counters()
        print("copied", after.h2d_bytes-before.h2d_bytes, "d2h", after.d2h_bytes-before.d2h_bytes, h.plan.copied_bytes_per_forward)
    assert torch.equal(tiny.sample(p), ref)
    assert holding_of(p.model) is None
