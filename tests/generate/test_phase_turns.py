"""A model's turn on the device: whole where it fits, else with its blocks streamed, then gone."""

import gc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_pipelines import text_encoder

from blockswap.turns.turn import turn_of

ACTIVATIONS = 15 * 2**20  # more than 512 tokens of this encoder take
eager = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)


def embed(encoder: Any, device: torch.device) -> torch.Tensor:
    ids = torch.zeros(1, 512, dtype=torch.int64)
    ids[0, :4] = torch.tensor([3, 4, 5, 1])
    with torch.no_grad():
        out = encoder(ids.to(device), (ids > 0).long().to(device)).last_hidden_state
    return torch.as_tensor(out).cpu()


@eager
@pytest.mark.parametrize("short", [0, 40_000])
def test_a_text_encoder(
    short: int, sim: ModuleType, sim_device: torch.device, limit: Callable[[int | None], None]
) -> None:
    torch.manual_seed(5)
    encoder = text_encoder(500)
    whole = sum(-(-p.nbytes // 512) * 512 for p in encoder.parameters())
    with turn_of(encoder, sim_device, budget=None, activation_bytes=ACTIVATIONS):
        expected = embed(encoder, sim_device)
    assert all(p.is_meta for p in encoder.parameters())
    torch.manual_seed(5)
    encoder = text_encoder(500)
    gc.collect()
    budget = whole + ACTIVATIONS - short
    limit(budget)
    before = torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    with turn_of(encoder, sim_device, budget=budget, activation_bytes=ACTIVATIONS):
        swap = vars(encoder).get("blockswap")
        assert (swap is not None) == (short > 0)
        assert swap is None or len(swap.plan.streamed) > 0
        assert torch.equal(embed(encoder, sim_device), expected)
    torch.accelerator.synchronize()
    assert torch.accelerator.max_memory_allocated() - before <= budget
    gc.collect()
    assert torch.accelerator.memory_allocated() <= before
