"""Experts on one pool when memory is short: budgets, corrections and out-of-memory are for both."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hungry_model import BLOCK_BYTES, HungryModel, build, expected, given, seeded
from safetensors.torch import save_file

from blockswap import BlockSwapArgs, Swap, open_experts, swap_experts
from blockswap.plan.joint_plan import together_bytes

SEEDS = list(range(10, 18))
STORES = ("ram", "disk")


@contextmanager
def pair(
    store: str, device: torch.device, folder: Path, args: BlockSwapArgs
) -> Iterator[tuple[list[HungryModel], list[Swap]]]:
    """Two models with equal weights."""
    models: list[Any]
    if store == "ram":
        models = [build(), build()]
        swaps: list[Any] = list(swap_experts(models, args, device=device))
    else:
        paths = [folder / f"expert-{number}.safetensors" for number in range(2)]
        for path in paths:
            save_file(build().state_dict(), path)
        with torch.device("meta"):
            empty = [HungryModel(), HungryModel()]
        models = list(open_experts(paths, args, device=device, skeletons=empty))
        swaps = [model.blockswap for model in models]
    try:
        yield models, swaps
    finally:
        for swap in swaps:
            swap.close()


def residents(swap: Swap) -> int:
    return len(swap.plan.residents)


@pytest.mark.parametrize("store", STORES)
def test_automatic_residents_fit_both_and_stay_within_the_room(
    store: str, sim: ModuleType, sim_device: torch.device, capacity: Any, tmp_path: Path
) -> None:
    wanted, x = expected(sim_device, SEEDS), given(sim_device)
    capacity(22 * BLOCK_BYTES)
    before = sim.counters().device_bytes
    with pair(store, sim_device, tmp_path, BlockSwapArgs()) as (models, swaps), torch.no_grad():
        for number, seed in enumerate(SEEDS):
            model = models[number // 2 % 2]
            assert torch.equal(seeded(model, x, seed), wanted[number]), number
            held = sim.counters().device_bytes - before
            assert held == together_bytes([swap.plan for swap in swaps], 512)
        assert min(residents(swap) for swap in swaps) > 0
        assert all(model.calls == 4 for model in models), "nothing ran out of memory"
    assert sim.counters().device_bytes == before


@pytest.mark.parametrize("store", STORES)
def test_residents_of_the_one_leave_for_a_forward_of_the_other(
    store: str, sim: ModuleType, sim_device: torch.device, capacity: Any, tmp_path: Path
) -> None:
    wanted, x = expected(sim_device, SEEDS), given(sim_device)
    capacity(26 * BLOCK_BYTES)
    args = BlockSwapArgs(vram_budget=20 * BLOCK_BYTES)
    with pair(store, sim_device, tmp_path, args) as (models, swaps), torch.no_grad():
        assert torch.equal(seeded(models[0], x, SEEDS[0]), wanted[0])
        assert torch.equal(seeded(models[1], x, SEEDS[1]), wanted[1])
        first, second = residents(swaps[0]), residents(swaps[1])
        assert min(first, second) >= 7
        # More than the second could make room for with all that is its own.
        models[1].scratch(head=(6 + second + 4) * BLOCK_BYTES)
        assert torch.equal(seeded(models[1], x, SEEDS[2]), wanted[2])
        assert models[1].calls > 2
        assert residents(swaps[1]) == 0, "its own leave first"
        assert residents(swaps[0]) < first
        assert any("ran out of memory" in sentence for sentence in swaps[1].plan.sentences)
        for number in (3, 4, 5):
            assert torch.equal(seeded(models[number % 2], x, SEEDS[number]), wanted[number])


def test_an_out_of_memory_that_nothing_helps_is_raised_and_both_go_on(
    sim_device: torch.device, capacity: Any, tmp_path: Path
) -> None:
    wanted, x = expected(sim_device, SEEDS), given(sim_device)
    capacity(26 * BLOCK_BYTES)
    args = BlockSwapArgs(vram_budget=20 * BLOCK_BYTES)
    with pair("ram", sim_device, tmp_path, args) as (models, _), torch.no_grad():
        models[1].scratch(head=40 * BLOCK_BYTES)
        with pytest.raises(torch.OutOfMemoryError):
            models[1](x)
        models[1].scratch()
        for number in (0, 1, 2, 3):
            assert torch.equal(seeded(models[number % 2], x, SEEDS[number]), wanted[number])


def test_a_closed_expert_gives_its_room_to_the_other(
    sim: ModuleType, sim_device: torch.device, capacity: Any, tmp_path: Path
) -> None:
    wanted, x = expected(sim_device, SEEDS), given(sim_device)
    capacity(22 * BLOCK_BYTES)
    with pair("ram", sim_device, tmp_path, BlockSwapArgs()) as (models, swaps), torch.no_grad():
        for number in range(4):
            assert torch.equal(seeded(models[number % 2], x, SEEDS[number]), wanted[number])
        both = residents(swaps[1])
        swaps[0].close()
        for number in range(4):
            assert torch.equal(seeded(models[1], x, SEEDS[number]), wanted[number])
        for number in range(6):
            assert torch.equal(seeded(models[1], x, SEEDS[number]), wanted[number])
        assert residents(swaps[1]) > both
