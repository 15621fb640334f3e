"""The plan follows what was measured: more residents while there is room, fewer before it ends."""

import gc
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import SIM_STORES, Shelf, fresh, inputs, opened, unit_bytes
from hungry_model import BLOCK_BYTES, expected, given, seeded, swapped

from blockswap import BlockSwapArgs
from blockswap.stream.pool.pool import Pool
from blockswap.swap.running.corrector import PATIENCE_FORWARDS
from engine_seams import collect_pools, wait_for_readers

STORES = ("ram", "disk")
SEEDS = list(range(20, 40))


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    return collect_pools(monkeypatch)


def blocks_of(swap: Any) -> int:
    return len(swap.plan.residents)


@pytest.mark.parametrize("store", STORES)
def test_room_that_the_first_forward_left_takes_more_residents(
    store: str, sim: ModuleType, sim_device: torch.device, capacity: Any, tmp_path: Path
) -> None:
    wanted = expected(sim_device, SEEDS[:4])
    x = given(sim_device)
    capacity(17 * BLOCK_BYTES)
    before = sim.counters().device_bytes
    with swapped(store, sim_device, tmp_path, BlockSwapArgs()) as (model, swap), torch.no_grad():
        planned = blocks_of(swap)
        assert 0 < planned < 12
        maps = []
        for number in range(4):
            assert torch.equal(seeded(model, x, SEEDS[number]), wanted[number]), number
            maps.append(swap.plan.block_map())
            assert sim.counters().device_bytes - before == swap.plan.device_bytes
        assert maps[0] != maps[1]
        assert maps[1] == maps[3], "corrected once"
        assert blocks_of(swap) > planned
        (said,) = [s for s in swap.plan.sentences if s.startswith("after the first forward")]
        assert f"({blocks_of(swap)} of 12)" in said
        assert f"{blocks_of(swap) - planned} more block" in said
        peak = swap.measured().device_peak_bytes
        assert peak - before <= 17 * BLOCK_BYTES * 0.9 * 0.95
        assert 17 * BLOCK_BYTES * 0.9 * 0.95 - (peak - before) < BLOCK_BYTES + 1024, "room is used"
        assert said in "\n".join(swap.report().lines())


@pytest.mark.parametrize("store", STORES)
def test_growing_activations_let_residents_go_and_smaller_ones_bring_them_back(
    store: str, sim_device: torch.device, capacity: Any, tmp_path: Path
) -> None:
    wanted = expected(sim_device, SEEDS)
    x = given(sim_device)
    capacity(18 * BLOCK_BYTES)
    with swapped(store, sim_device, tmp_path, BlockSwapArgs()) as (model, swap), torch.no_grad():
        counts = []
        for number, seed in enumerate(SEEDS):
            model.scratch(blocks=0 if number in (0, 1) or number > 5 else 2 * BLOCK_BYTES)
            assert torch.equal(seeded(model, x, seed), wanted[number]), number
            counts.append(blocks_of(swap))
    small, grown = counts[1], counts[3]
    assert grown < small
    assert counts[3:6] == [grown] * 3
    assert counts[6 + PATIENCE_FORWARDS - 1] == grown, "not at the first smaller forward"
    assert counts[-1] == small
    assert model.calls == len(SEEDS), "nothing ran out of memory"


def test_a_budget_for_weights_is_never_exceeded(
    sim: ModuleType, sim_device: torch.device, capacity: Any, tmp_path: Path
) -> None:
    wanted = expected(sim_device, SEEDS[:12])
    x = given(sim_device)
    capacity(40 * BLOCK_BYTES)
    budget = 9 * BLOCK_BYTES
    args = BlockSwapArgs(vram_budget=budget)
    with swapped("ram", sim_device, tmp_path, args) as (model, swap), torch.no_grad():
        planned = blocks_of(swap)
        for number in range(12):
            model.scratch(blocks=35 * BLOCK_BYTES if number == 1 else 0)
            assert torch.equal(seeded(model, x, SEEDS[number]), wanted[number]), number
            assert swap.plan.device_bytes <= budget
            if number == 1:
                assert blocks_of(swap) < planned
        assert blocks_of(swap) == planned, "what an out-of-memory took comes back"


@pytest.mark.parametrize("store", SIM_STORES)
def test_steady_state_after_a_correction_obeys_the_rules(
    store: str,
    sim: ModuleType,
    sim_device: torch.device,
    capacity: Any,
    pools: list[Pool],
    shelf: Shelf,
) -> None:
    plain = fresh("original").to(sim_device)
    own = cost(sim, plain, sim_device, None)
    del plain
    gc.collect()
    # The reserve is a quarter: what the first forward leaves of it takes residents.
    capacity(int(unit_bytes("original") * 1.4))
    with opened(store, "original", sim_device, {"prefetch_blocks": 1}, shelf=shelf) as (
        model,
        swap,
    ):
        first = swap.plan
        with torch.no_grad():
            model(**inputs("original", sim_device))
            model(**inputs("original", sim_device))
        steady = swap.plan
        assert len(first.residents) < len(steady.residents) < 6, steady.sentences
        mine = cost(sim, model, sim_device, pools[-1])
        assert swap.plan is steady
    assert mine["h2d_bytes"] == 3 * steady.copied_bytes_per_forward + own["h2d_bytes"]
    for name in ("host_syncs_here", "device_allocations", "pinned_allocations", "d2d_copies"):
        assert mine[name] == own[name], name


def cost(
    sim: ModuleType, model: torch.nn.Module, device: torch.device, pool: Pool | None
) -> dict[str, int]:
    """What three forwards do to the device in the steady state, as differences of counters."""
    given_inputs = inputs("original", device)
    for _ in range(2):
        before = sim.counters()
        with torch.no_grad():
            for _ in range(3):
                model(**given_inputs)
        if pool is not None:
            wait_for_readers(pool)
    after = sim.counters()
    names = (
        "h2d_bytes",
        "host_syncs_here",
        "device_allocations",
        "pinned_allocations",
        "d2d_copies",
    )
    return {name: getattr(after, name) - getattr(before, name) for name in names}
