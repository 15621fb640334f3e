"""Each wait that a change of residency adds is needed: taken out, the simulator sees it."""

from typing import Any

import pytest
import torch
from cases import opened
from mutation_scenario import Scenario
from test_residency import budget

from blockswap.stream.device import Accelerator
from blockswap.swap.running.residency import Residency
from engine_seams import collect_residencies, drop_waits

BOTH = pytest.mark.parametrize("removed", [False, True], ids=["as it is", "taken out"])


@pytest.fixture
def residencies(monkeypatch: pytest.MonkeyPatch) -> list[Residency]:
    return collect_residencies(monkeypatch)


def run(model: Any, index: int, x: torch.Tensor, stream: torch.Stream | None = None) -> None:
    if stream is None:
        model.blocks[index](x)
        return
    with stream:
        model.blocks[index](x)


def inputs_of(scenario: Scenario) -> tuple[list[torch.Tensor], torch.Stream]:
    given = [torch.ones(2, 16, device=scenario.device) for _ in range(2)]
    stream = torch.Stream(scenario.device)
    torch.accelerator.synchronize()
    return given, stream


@BOTH
@pytest.mark.parametrize(
    ("fills", "hazard"),
    [
        pytest.param(False, "read-after-write", id="it reads what the first stream filled"),
        pytest.param(True, "write-after-write", id="it fills what is the first stream's memory"),
    ],
)
def test_another_stream_must_wait_for_the_slab(
    scenario: Scenario,
    removed: bool,
    fills: bool,
    hazard: str,
    residencies: list[Residency],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A block comes to stay: the slab is made on one stream, and the block is run on another."""
    if removed:
        drop_waits(monkeypatch, lambda _, event: event is residencies[-1]._engine._settled)
    with (
        scenario.watched() as found,
        opened("ram", "mini", scenario.device, budget("mini", 2), shelf=scenario.shelf) as opening,
        torch.no_grad(),
    ):
        model, swap = opening
        (x, y), stream = inputs_of(scenario)
        index = next(n for n in range(5) if swap.plan.tier_of(f"blocks.{n}") == "ram")
        residencies[-1].promote([f"blocks.{index}"])
        if not fills:
            run(model, index, x)
        run(model, index, y, stream)
    assert (hazard in found) is removed
    assert removed or found == []


@BOTH
def test_the_allocator_must_know_every_stream_that_used_a_slab(
    scenario: Scenario,
    removed: bool,
    residencies: list[Residency],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resident is run on another stream than its slab's, and let go while that still runs."""
    if removed:
        monkeypatch.setattr(Accelerator, "used_on", lambda self, memory, stream: None)
    with (
        scenario.watched() as found,
        opened("ram", "mini", scenario.device, budget("mini", 2), shelf=scenario.shelf) as opening,
        torch.no_grad(),
    ):
        model, swap = opening
        (x, _), stream = inputs_of(scenario)
        index = next(n for n in range(5) if swap.plan.tier_of(f"blocks.{n}") == "resident")
        run(model, index, x, stream)
        assert residencies[-1].demote([f"blocks.{index}"])
    assert ("free-without-record_stream" in found) is removed
    assert removed or found == []


@BOTH
def test_copies_must_wait_for_fresh_slots(
    scenario: Scenario,
    removed: bool,
    residencies: list[Residency],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everything was resident; slots are made on the compute stream, the copy stream writes."""
    args = budget("mini", 5)
    with (
        scenario.watched() as found,
        opened("ram", "mini", scenario.device, args, shelf=scenario.shelf) as opening,
        torch.no_grad(),
    ):
        model, swap = opening
        assert swap.plan.slots == 0
        (x, _), _ = inputs_of(scenario)
        assert residencies[-1].demote(["blocks.0", "blocks.1", "blocks.2"])
        if removed:
            for slot in scenario.pools[-1].slots:
                slot.freed_on = None
        run(model, 0, x)
    assert ("write-after-write" in found) is removed
    assert removed or found == []
