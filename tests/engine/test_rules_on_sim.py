"""The rules of the engine as exact assertions on the simulated accelerator."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import SIM_STORES, Shelf, fresh, inputs, opened, reference
from torch import nn

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.stream.pool.pool import Pool
from engine_seams import collect_pools, wait_for_readers

FAMILIES = ("original-vace", "diffusers")
MOVED = {"blocks_to_swap": 5}


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    return collect_pools(monkeypatch)


@dataclass(frozen=True)
class Cost:
    """What some forwards did to the device, as differences of counters."""

    host_syncs_here: int
    device_allocations: int
    pinned_allocations: int
    h2d_copies: int
    h2d_bytes: int
    d2h_copies: int
    pageable_copies: int


def measured_forwards(
    sim: ModuleType, model: nn.Module, family: str, device: torch.device, pool: Pool | None = None
) -> Cost:
    """The cost of three forwards in the steady state, inputs and outputs staying on the device."""
    given = inputs(family, device)
    if family.startswith("diffusers"):
        given["return_dict"] = False  # type: ignore[assignment]

    def three() -> Any:
        with torch.no_grad():
            outs = [model(**given) for _ in range(3)]
        if pool is not None:
            wait_for_readers(pool)
        return outs

    kept = [three(), three()]
    before = sim.counters()
    kept.append(three())
    after = sim.counters()
    assert len(kept) == 3
    return Cost(
        after.host_syncs_here - before.host_syncs_here,
        after.device_allocations - before.device_allocations,
        after.pinned_allocations - before.pinned_allocations,
        after.h2d_copies - before.h2d_copies,
        after.h2d_bytes - before.h2d_bytes,
        after.d2h_copies - before.d2h_copies,
        after.pageable_copies - before.pageable_copies,
    )


@pytest.fixture(params=FAMILIES)
def costs(
    request: pytest.FixtureRequest, sim: ModuleType, sim_device: torch.device
) -> Iterator[tuple[str, Cost]]:
    """A family and what its unswapped forward costs: the model's own syncs and allocations."""
    model = fresh(request.param).to(sim_device)
    yield request.param, measured_forwards(sim, model, request.param, sim_device)


@pytest.mark.parametrize("store", SIM_STORES)
def test_steady_state_copies_the_plan_and_nothing_else(
    store: str,
    costs: tuple[str, Cost],
    sim: ModuleType,
    sim_device: torch.device,
    pools: list[Pool],
    shelf: Shelf,
) -> None:
    family, plain = costs
    with opened(store, family, sim_device, MOVED, shelf=shelf) as (model, swap):
        cost = measured_forwards(sim, model, family, sim_device, pools[-1])
        plan = swap.plan
    assert plan.copied_bytes_per_forward > 0
    assert cost.host_syncs_here == plain.host_syncs_here, "the forward thread waits for the device"
    assert cost.device_allocations == plain.device_allocations, "the engine allocates"
    assert cost.pinned_allocations == 0
    assert cost.pageable_copies == plain.pageable_copies
    assert cost.h2d_bytes - plain.h2d_bytes == 3 * plan.copied_bytes_per_forward
    assert cost.h2d_copies - plain.h2d_copies <= 3 * 4 * len(plan.streamed)
    assert cost.d2h_copies == plain.d2h_copies == 0


@pytest.mark.parametrize("store", SIM_STORES)
def test_counters_of_the_swap_equal_those_of_the_device(
    store: str, sim: ModuleType, sim_device: torch.device, pools: list[Pool], shelf: Shelf
) -> None:
    with opened(store, "mini", sim_device, MOVED, shelf=shelf) as (model, swap):
        given = inputs("mini", sim_device)
        before = sim.counters()
        with torch.no_grad():
            for _ in range(4):
                model(**given)
        wait_for_readers(pools[-1])
        after, mine = sim.counters(), swap.measured().counters
    assert mine.copied_bytes == after.h2d_bytes - before.h2d_bytes
    assert mine.copies == after.h2d_copies - before.h2d_copies
    assert (mine.forwards, mine.visits) == (4, 4 * len(swap.plan.units))


PLANS: dict[str, dict[str, Any]] = {
    "all": {"blocks_to_swap": 6},
    "half": {"blocks_to_swap": 3},
    "one on demand": {"blocks": "2", "prefetch_blocks": 0},
    "two slots": {"blocks_to_swap": 5, "prefetch_blocks": 1},
    "four slots": {"blocks_to_swap": 5, "prefetch_blocks": 3},
    "embedders too": {"blocks_to_swap": 6, "offload_txt_emb": True, "offload_img_emb": True},
    "none": {"blocks_to_swap": 0},
}


@pytest.mark.parametrize("store", SIM_STORES)
@pytest.mark.parametrize("name", PLANS)
def test_device_bytes_after_opening_are_the_planned_bytes(
    name: str, store: str, sim: ModuleType, sim_device: torch.device, shelf: Shelf
) -> None:
    dtype = "mixed" if name in ("half", "two slots") else "fp32"
    gc.collect()
    sim.reset()
    base = sim.counters().device_bytes
    with opened(store, "original-i2v", sim_device, PLANS[name], dtype=dtype, shelf=shelf) as (
        _,
        swap,
    ):
        now = sim.counters()
        assert now.device_bytes - base == swap.plan.device_bytes
        assert now.device_bytes_peak - base == swap.plan.device_bytes, "more while opening"
    assert sim.counters().device_bytes == base, "bytes are held after close"


@pytest.mark.parametrize("store", SIM_STORES)
def test_device_peak_of_a_forward_is_the_plan_and_the_activations(
    store: str, sim: ModuleType, sim_device: torch.device, shelf: Shelf
) -> None:
    given = inputs("original", sim_device)

    def peak_over(model: nn.Module) -> int:
        with torch.no_grad():
            model(**given)
            torch.accelerator.synchronize()
            before = torch.accelerator.memory_allocated()
            torch.accelerator.reset_peak_memory_stats()
            for _ in range(2):
                model(**given)
        return torch.accelerator.max_memory_allocated() - before

    plain = fresh("original").to(sim_device)
    activations = peak_over(plain)
    del plain
    with opened(store, "original", sim_device, MOVED, shelf=shelf) as (model, _):
        assert peak_over(model) == activations


@pytest.mark.parametrize("store", SIM_STORES)
def test_pinned_bytes_are_those_of_the_plan_and_go_on_close(
    store: str, sim: ModuleType, sim_device: torch.device, shelf: Shelf
) -> None:
    assert sim.counters().pinned_bytes == 0
    with opened(store, "original", sim_device, MOVED, shelf=shelf) as (model, swap):
        staging = swap.plan.staging_buffers * swap.plan.staging_bytes
        pinned = sim.counters().pinned_bytes
        if store == "disk":  # nothing but staging, and not a byte more is locked
            assert pinned == sim.counters().pinned_locked_bytes == staging
        arena = pinned - staging
        assert arena >= 0
        assert arena <= swap.plan.pinned_bytes * 1.15 + 4096
        with torch.no_grad():
            model(**inputs("original", sim_device))
        assert sim.counters().pinned_bytes == pinned
    assert sim.counters().pinned_bytes == 0
    assert sim.counters().pinned_locked_bytes == 0


def test_capacity_that_holds_the_plan_but_not_the_model(
    sim: ModuleType, sim_device: torch.device
) -> None:
    expected = reference("original", sim_device)
    given = inputs("original", sim_device)
    whole = sum(p.nbytes for p in fresh("original").parameters())
    gc.collect()
    sim.configure(capacity=sim.counters().device_bytes + int(whole * 0.8))
    try:
        model = fresh("original")
        with pytest.raises(torch.OutOfMemoryError):
            fresh("original").to(sim_device)
        gc.collect()
        with swap_blocks(model, BlockSwapArgs(blocks_to_swap=6), device=sim_device) as swap:
            assert swap.plan.device_bytes < int(whole * 0.8) < whole
            with torch.no_grad():
                assert torch.equal(model(**given).cpu(), expected)
    finally:
        sim.configure()


class TimedBlock(nn.Module):
    """Computes for a fixed time and reads its weight; the simulated clock makes it exact."""

    def __init__(self, sim: ModuleType, nbytes: int, seconds: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(nbytes // 4), requires_grad=False)
        self.sim, self.seconds = sim, seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sim.compute(self.seconds, reads=[self.weight, x], writes=[x])
        return x


class TimedModel(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def step_seconds(sim: ModuleType, model: nn.Module, device: torch.device, count: int = 8) -> float:
    """Virtual seconds of one forward in the steady state."""
    x = torch.zeros(4, device=device)
    torch.accelerator.synchronize()
    with torch.no_grad():
        for _ in range(3):
            model(x)
        start = sim.clock.device_end()
        for _ in range(count):
            model(x)
    return (sim.clock.device_end() - start) / count


@pytest.mark.parametrize("streamed", [4, 8, 12])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9, 1.0, 1.1, 2.0, 4.0])
def test_step_time_is_close_to_the_larger_of_compute_and_transfer(
    ratio: float, streamed: int, sim: ModuleType, sim_device: torch.device
) -> None:
    nbytes, copy_seconds = 1_000_000, 1e-4  # at 10 GB/s
    compute = copy_seconds / ratio
    sim.configure(mode="lazy", h2d_gb_s=10)
    model = TimedModel([TimedBlock(sim, nbytes, compute) for _ in range(12)])
    args = BlockSwapArgs(blocks_to_swap=streamed, prefetch_blocks=2)
    with swap_blocks(model, args, device=sim_device) as swap:
        step = step_seconds(sim, model, sim_device)
        transfer = swap.plan.copied_bytes_per_forward / 10e9
    bound = max(12 * compute, transfer)
    assert bound * (1 - 1e-9) <= step <= bound * 1.02


def test_step_time_without_prefetch_is_compute_plus_transfer(
    sim: ModuleType, sim_device: torch.device
) -> None:
    sim.configure(mode="lazy", h2d_gb_s=10)
    model = TimedModel([TimedBlock(sim, 1_000_000, 1e-4) for _ in range(8)])
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=8, prefetch_blocks=0), device=sim_device):
        step = step_seconds(sim, model, sim_device)
    assert step == pytest.approx(8 * 2e-4, rel=0.01)


def test_report_tells_the_virtual_times_of_copies_and_compute(
    sim: ModuleType, sim_device: torch.device
) -> None:
    sim.configure(mode="lazy", h2d_gb_s=10)
    model = TimedModel([TimedBlock(sim, 1_000_000, 2e-4) for _ in range(6)])
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=6), device=sim_device) as swap:
        step_seconds(sim, model, sim_device, count=3)
        visits = swap.measured().visits
    assert len(visits) == 6 * 6
    assert {round(visit.compute_seconds, 7) for visit in visits} == {2e-4}
    copied = [visit for visit in visits if visit.copied_bytes]
    assert {round(visit.copy_seconds, 6) for visit in copied} == {1e-4}
    assert sum(visit.exposed_seconds for visit in visits[6:]) == pytest.approx(0, abs=1e-9)
    assert visits[0].exposed_seconds > 0
