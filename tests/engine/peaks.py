"""Peaks and FLOPs of a call on the simulated accelerator, to compare a prediction with."""

import gc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from blockswap.plan.inputs.workload import ForwardCost

RATE = 1e9  # FLOP/s of the simulated accelerator, so that its clock counts FLOPs


def loaded(skeleton: torch.nn.Module) -> torch.nn.Module:
    """The model with random weights; buffers that are real stay what they are."""
    for name, parameter in list(skeleton.named_parameters()):
        place = skeleton.get_submodule(name.rpartition(".")[0])
        values = torch.randn(parameter.shape).mul(0.1).to(parameter.dtype)
        place._parameters[name.rpartition(".")[2]] = torch.nn.Parameter(values, requires_grad=False)
    return skeleton


def on_device(given: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Real tensors for meta ones: ones, or zeros where whole numbers may be positions."""

    def real(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if not leaf.is_meta:
            return leaf.to(device)
        return torch.ones(leaf.shape, dtype=leaf.dtype).to(device)

    found: dict[str, Any] = tree_map(real, given)
    return found


def measured(
    sim: ModuleType, call: Callable[..., object], given: Callable[[], dict[str, Any]]
) -> tuple[int, float]:
    """Peak bytes above the weights, and FLOPs by the clock, of one call with fresh inputs."""
    gc.collect()
    sim.configure(flops=RATE, h2d_gb_s=1e9, pageable_gb_s=1e9)
    sim.reset()
    weights = torch.accelerator.memory_allocated()
    kwargs = given()
    torch.accelerator.synchronize()
    torch.accelerator.reset_peak_memory_stats()
    start = sim.clock.device_end()
    with torch.no_grad():
        out = call(**kwargs)
    torch.accelerator.synchronize()
    peak = torch.accelerator.max_memory_allocated() - weights
    del out
    return peak, (sim.clock.device_end() - start) * RATE


def expect(cost: ForwardCost, peak_bytes: int, flops: float) -> None:
    assert cost.activation_bytes == peak_bytes
    assert flops == pytest.approx(cost.flops, rel=1e-6)
