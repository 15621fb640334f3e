"""A model's turn on the device: whole where it fits, else with its blocks streamed, then gone."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_pipelines import text_encoder
from whole import by_us, request_for

from blockswap.events import Measured
from blockswap.generate.run import prepare
from blockswap.plan.inputs.machine import Machine
from blockswap.swap import Swap
from blockswap.turns.turn import turn_of
from engine_seams import wait_for_readers

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


@eager
@pytest.mark.parametrize("kind", ["t2v", "two-experts"])
def test_nothing_is_brought_for_a_forward_that_does_not_come(
    kind: str,
    folders: Callable[[str], Path],
    tmp_path: Path,
    sim_device: torch.device,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every model's copies and reads of the run are those of its forwards, to the byte."""
    closed: list[tuple[Swap, Measured]] = []
    close = Swap.close

    def noted(swap: Swap) -> None:
        wait_for_readers(swap._streamer._pool)
        close(swap)
        closed.append((swap, swap.measured()))

    monkeypatch.setattr(Swap, "close", noted)
    folder, request = folders(kind), request_for(kind, tmp_path)
    how: dict[str, Any] = {"device": sim_device, "machine": machine}
    _, free = prepare(folder, request, tmp_path / "a.mp4", **how)
    tight = max(phase.device_bytes for phase in free.phases if phase.name != "sample")
    block = max(unit.slab_bytes for unit in free.blocks.units)
    asked = replace(request, vram_budget=tight + 2 * block)
    by_us(folder, asked, tmp_path / "b.mp4", sim_device, machine=machine)
    assert len(closed) == (3 if kind == "two-experts" else 2)
    assert any(swap.plan.slots > 1 for swap, _ in closed)
    for swap, measured in closed:
        counted, plan = measured.counters, swap.plan
        assert counted.forwards > 0
        assert counted.copied_bytes == counted.forwards * plan.copied_bytes_per_forward
        assert counted.read_bytes == counted.forwards * plan.read_bytes_per_forward
