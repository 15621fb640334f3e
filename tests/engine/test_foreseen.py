"""What a plan promises with a workload at hand is what the simulated accelerator then measures.

Peaks are compared with the allocator's to 1 % (weights and slots to the byte), a forward in the
steady state with the virtual clock to 3 %. Budgets go from one slot to all resident.
"""

import copy
import gc
from types import ModuleType
from typing import Any

import pytest
import torch
from test_predicted_peaks import GEOMETRIES, WORKLOADS, loaded, on_device

from blockswap import BlockSwapArgs, Outlook, swap_blocks
from blockswap.errors import PlanError
from blockswap.plan.inputs.machine import DiskFigures, Machine
from blockswap.plan.inputs.margin import NO_MARGIN
from blockswap.predict.wan import forward_inputs, torch_dtype, typed_skeleton

FLOPS, SLOW, FAST = 2e9, 2.5e8, 4e9
eager = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)


def machine(link: float) -> Machine:
    rates = tuple((dtype, FLOPS) for dtype in ("float32", "bfloat16", "float16"))
    return Machine(
        "sim",
        on_host=False,
        flops=rates,
        pinned_link=link,
        disk=DiskFigures(link, 4, 1 << 20, direct=True),
        margin=NO_MARGIN,
    )


def configure(sim: ModuleType, link: float, capacity: int | None = None) -> None:
    gc.collect()
    sim.configure(flops=FLOPS, h2d_gb_s=link / 1e9, capacity=capacity)
    sim.reset()


def steady_seconds(sim: ModuleType, run: Any, count: int = 4) -> float:
    for _ in range(3):
        run()
    start = sim.clock.device_end()
    for _ in range(count):
        run()
    return float(sim.clock.device_end() - start) / count


def budgets(model: torch.nn.Module, outlook: Outlook, device: torch.device) -> list[int]:
    """From the least that works to the whole model, in six steps."""
    with swap_blocks(
        model, BlockSwapArgs(vram_budget=1 << 50), device=device, workload=outlook
    ) as s:
        most = s.plan.peak_bytes
        assert most is not None
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        try:
            args = BlockSwapArgs(vram_budget=middle)
            swap_blocks(model, args, device=device, workload=outlook).close()
            high = middle
        except PlanError:
            low = middle + 1
    return [low + (most - low) * step // 5 for step in range(6)]


@eager
@pytest.mark.parametrize(
    ("family", "workload", "link"),
    [
        ("t2v", "fp32", SLOW),
        ("t2v", "fp16-cfg", FAST),
        ("i2v", "bf16", SLOW),
        ("vace", "bf16", FAST),
        ("vace", "fp32", SLOW),
    ],
)
def test_peak_and_time_are_as_planned(
    sim: ModuleType, sim_device: torch.device, family: str, workload: str, link: float
) -> None:
    geometry, wanted = GEOMETRIES[family], WORKLOADS[workload]
    outlook = Outlook(wanted, machine(link))
    model = loaded(typed_skeleton(geometry, torch_dtype(wanted.dtype)))
    configure(sim, link)
    given = on_device(forward_inputs(geometry, wanted), sim_device)
    with torch.no_grad():
        expected = plain(model, given, sim_device)
        before = None
        for budget in budgets(model, outlook, sim_device):
            del given
            gc.collect()
            held = torch.accelerator.memory_allocated()
            # The device has no more than the plan was given: it never asks for more.
            configure(sim, link, capacity=held + budget)
            with swap_blocks(
                model, BlockSwapArgs(vram_budget=budget), device=sim_device, workload=outlook
            ) as swap:
                assert torch.accelerator.memory_allocated() - held == swap.plan.device_bytes
                torch.accelerator.reset_peak_memory_stats()
                given = on_device(forward_inputs(geometry, wanted), sim_device)
                out = model(**given)[0]
                torch.accelerator.synchronize()
                peak = torch.accelerator.max_memory_allocated() - held
                assert torch.equal(out.cpu(), expected)
                del out
                assert peak == pytest.approx(swap.plan.peak_bytes, rel=0.01)
                assert peak <= budget
                seconds = steady_seconds(sim, lambda: model(**given))
                assert seconds == pytest.approx(swap.plan.timing.step_seconds, rel=0.03)
                assert before is None or swap.plan.timing.step_seconds <= before * (1 + 1e-8)
                before = swap.plan.timing.step_seconds


def plain(model: torch.nn.Module, given: dict[str, Any], device: torch.device) -> torch.Tensor:
    """The output of the whole model on the device, brought to the host."""
    whole = copy.deepcopy(model).to(device)
    return whole(**given)[0].cpu()
