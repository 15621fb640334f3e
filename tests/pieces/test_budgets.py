"""On the simulated accelerator, from the least budget to all: as planned, and never above it.

The plan chooses whole or pieces by itself, beside residents and slots.
"""

import gc
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from clips import ALL, FAMILIES, clip, given, loaded, run, small_sizes, some_of

from blockswap import BlockSwapArgs, Outlook, swap_blocks
from blockswap.errors import PlanError
from blockswap.plan.inputs.machine import Machine
from blockswap.plan.inputs.margin import NO_MARGIN
from blockswap.plan.inputs.workload import Workload

STEPS = 64 if ALL else 6
SIZES = {
    "bf16": {},
    "fp32": {"dtype": "float32"},
    "batch-2": {"batch": 2},
    "longer": {"frames": 41},
}
RATES = tuple((dtype, 2e9) for dtype in ("float32", "bfloat16"))
MACHINE = Machine("sim", on_host=False, flops=RATES, pinned_link=1e9, disk=None, margin=NO_MARGIN)


def peak_at(model: Any, clip: Workload, budget: int, device: torch.device) -> int:
    """Bytes at the peak that a plan for this budget says. Raises PlanError below the least."""
    args = BlockSwapArgs(vram_budget=budget)
    with swap_blocks(model, args, device=device, workload=Outlook(clip, MACHINE)) as swap:
        assert swap.plan.peak_bytes is not None
        return swap.plan.peak_bytes


def budgets(model: Any, clip: Workload, device: torch.device) -> list[int]:
    """From the least that works to the whole model, in even steps."""
    most = peak_at(model, clip, 1 << 50, device)
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        try:
            high = min(middle, peak_at(model, clip, middle, device))
        except PlanError:
            low = middle + 1
    return [low + (most - low) * step // (STEPS - 1) for step in range(STEPS)]


@pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
@pytest.mark.parametrize(
    ("family", "size"), some_of(product(FAMILIES, SIZES), [("t2v", "batch-2"), ("vace", "bf16")])
)
def test_peaks_are_as_planned_and_never_above_the_budget(
    sim: ModuleType,
    sim_device: torch.device,
    family: str,
    size: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place in ("swap.plan_inputs.outlook", "pieces.install"):
        monkeypatch.setattr(f"blockswap.{place}.sizes_below", small_sizes)
    workload = clip(family, **SIZES[size])
    model = loaded(family, workload)
    expected = run(model, given(family, workload))
    sim.configure()
    sim.reset()
    cut = []
    for budget in budgets(model, workload, sim_device):
        gc.collect()
        held = torch.accelerator.memory_allocated()
        sim.configure(capacity=held + budget)
        args, outlook = BlockSwapArgs(vram_budget=budget), Outlook(workload, MACHINE)
        with swap_blocks(model, args, device=sim_device, workload=outlook) as swap:
            assert torch.accelerator.memory_allocated() - held == swap.plan.device_bytes
            torch.accelerator.reset_peak_memory_stats()
            inputs = given(family, workload, sim_device)
            out = run(model, inputs)
            torch.accelerator.synchronize()
            peak = torch.accelerator.max_memory_allocated() - held
            assert torch.equal(out.cpu(), expected)
            assert peak == pytest.approx(swap.plan.peak_bytes, rel=0.01)
            assert peak <= budget
            assert "ran out of memory" not in " ".join(swap.plan.sentences)
            cut.append(swap.plan.chunk_tokens)
            del out, inputs
        sim.configure()
    assert cut[0] in (64, 128), "the least is in pieces"
    assert cut[-1] is None, "all is whole"
