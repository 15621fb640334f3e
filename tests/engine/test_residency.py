"""Units come and go while a swap runs: output, plan and bytes stay true in every order."""

import gc
import random
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import SIM_STORES, Shelf, forward, fresh, opened, reference, unit_bytes
from seams import collect_pools, collect_residencies

from blockswap import Swap
from blockswap.stream.pool import Pool
from blockswap.swap.residency import Residency

Sim = ModuleType


@pytest.fixture
def residencies(monkeypatch: pytest.MonkeyPatch) -> list[Residency]:
    return collect_residencies(monkeypatch)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    return collect_pools(monkeypatch)


def budget(family: str, residents: int) -> dict[str, Any]:
    """Two slots and a VRAM budget that holds `residents` blocks beside them (any may be streamed).

    The rest of these models is less than half of a block, a block's share of padding far less.
    """
    model = fresh(family)
    blocks = len(model.blocks)  # type: ignore[arg-type]
    rest = sum(p.nbytes for p in model.parameters()) - unit_bytes(family)
    block = unit_bytes(family) // blocks
    padded = block + 128 * 64  # parameters are aligned to 256 bytes
    return {"vram_budget": rest + 16 * 512 + (residents + 2) * padded, "prefetch_blocks": 1}


def check(swap: Swap, sim: Sim, own: int) -> None:
    """The plan's bytes are those of the allocator, and its map that of the engine."""
    assert sim.counters().device_bytes - own == swap.plan.device_bytes
    assert {u.name: u.tier for u in swap.plan.units} == swap._streamer.tiers()


@pytest.mark.parametrize("store", SIM_STORES)
@pytest.mark.parametrize("family", ["mini", "original"])
def test_promotions_and_demotions_in_any_order_are_bit_equal(
    family: str,
    store: str,
    sim: Sim,
    sim_device: torch.device,
    shelf: Shelf,
    residencies: list[Residency],
) -> None:
    expected = reference(family, sim_device)
    gc.collect()
    sim.reset()
    base = sim.counters().device_bytes
    draw = random.Random(7)
    with (
        opened(store, family, sim_device, budget(family, 2), shelf=shelf) as (model, swap),
        torch.no_grad(),
    ):
        assert sim.counters().device_bytes - base == swap.plan.device_bytes
        forward(model, family, sim_device)
        own = sim.counters().device_bytes - swap.plan.device_bytes  # rope tables stay there
        residency = residencies[-1]
        seen = set()
        for turn in range(14):
            units = list(residency.units())
            names = draw.sample(units, draw.randrange(1, 4))
            leaving = [u.name for u in names if u.resident and u.demotable]
            joining = [u.name for u in names if not u.resident]
            assert residency.demote(leaving) == tuple(leaving)
            assert residency.promote(joining) == tuple(joining)
            check(swap, sim, own)
            with torch.inference_mode() if turn % 3 == 0 else torch.no_grad():
                out = forward(model, family, sim_device)
            assert torch.equal(out, expected), (turn, swap.plan.block_map())
            check(swap, sim, own)
            seen.add(swap.plan.block_map())
        assert len(seen) > 5
    assert sim.counters().device_bytes == own
    assert sim.counters().pinned_bytes == 0
