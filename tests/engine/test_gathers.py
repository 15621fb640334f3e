"""Slots that several ranks fill: each wait is needed, and the bits are right whatever others do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import fresh, inputs, reference
from mutation_scenario import Scenario

from blockswap import BlockSwapArgs
from blockswap.errors import StateError
from blockswap.stream.engine.supply import Supply
from blockswap.stream.pool.gathers import Gathers
from blockswap.stream.pool.pool import Pool
from engine_seams import drop_waits, is_event, replace_event
from one_rank import Others, swapped

ARGS = BlockSwapArgs(blocks_to_swap=5, prefetch_blocks=2)


def found_in(
    scenario: Scenario,
    meddle: Callable[[Pool], None] | None = None,
    others: Others | None = None,
    args: BlockSwapArgs = ARGS,
    order: tuple[int, ...] = (),
) -> list[str]:
    """Forwards as one of two ranks; race kinds, and whether an output was wrong."""
    expected, given = reference("mini", scenario.device), inputs("mini", scenario.device)
    model = fresh("mini")
    with scenario.watched() as found:
        swap = swapped(model, args, others or Others(1, 2))
        if meddle is not None:
            meddle(scenario.pools[-1])
        with swap, torch.no_grad():
            x = torch.zeros(2, 16, device=scenario.device)
            torch.accelerator.synchronize()
            for index in order:
                model.blocks[index](x)  # type: ignore[index, operator]
            outs = [model(**given) for _ in range(3)]
            torch.accelerator.synchronize()
            found += ["output" for out in outs if not torch.equal(out.cpu(), expected)]
    return found


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_nothing_is_found_in_the_engine_as_it_is(scenario: Scenario, parts: int) -> None:
    for part in (0, parts - 1):
        others = Others(part, parts)
        assert found_in(scenario, others=others) == []
        assert len(others.gathered) == len(others.posted) >= 15
        assert [entry for entry, _ in others.posted] == list(range(len(others.posted)))


def test_a_gather_must_wait_for_the_own_part(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = drop_waits(
        monkeypatch,
        lambda stream, event: (
            is_event(scenario.pools, event, "ready")
            and stream is scenario.pools[-1].gathers._stream  # type: ignore[union-attr]
        ),
    )
    assert "read-after-write" in found_in(scenario)
    assert gone


def test_ready_must_be_recorded_after_a_gather(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first record is the copy's: a wait for that alone lets compute read before the gather."""
    drop_waits(monkeypatch, lambda stream, event: False)
    on_demand = BlockSwapArgs(blocks="1", prefetch_blocks=0)
    found = found_in(
        scenario,
        lambda pool: [replace_event(slot, "ready", records=1) for slot in pool.slots] and None,
        args=on_demand,
    )
    assert "read-after-write" in found


@pytest.mark.parametrize("removed", [False, True], ids=["as it is", "taken out"])
def test_a_copy_must_wait_for_parts_that_still_arrive(
    scenario: Scenario, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks 1 and 2 are brought ahead and never run: their slots go to others."""
    if removed:
        drop_waits(
            monkeypatch,
            lambda stream, event: (
                is_event(scenario.pools, event, "ready") and stream is scenario.pools[-1].copies
            ),
        )
    found = found_in(scenario, order=(0, 3, 0, 3))
    assert bool(found) is removed


def test_a_unit_is_not_entered_before_its_gather_is_called(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gathers, "complete_copied", lambda self: None)
    assert found_in(scenario) == []
    monkeypatch.setattr(Supply, "complete", lambda self, slot: None)
    assert "output" in found_in(scenario)


@pytest.mark.parametrize("entry", [0, 1, 4, 7])
def test_from_where_the_ranks_part_each_brings_all_of_every_block(
    scenario: Scenario, entry: int
) -> None:
    others = Others(0, 2, parts_from=entry)
    assert found_in(scenario, others=others) == []
    assert len(others.gathered) == entry


@pytest.mark.parametrize("order", [(3, 1, 4), (0, 0, 0), (2,), (4, 3, 2, 1, 0)])
def test_any_order_is_right(scenario: Scenario, order: tuple[int, ...]) -> None:
    assert found_in(scenario, order=order) == []


def test_a_gather_that_was_interrupted_is_not_called_twice(scenario: Scenario) -> None:
    class Interrupted(Others):
        def gather(self, whole: Any, part: Any, name: str) -> None:
            super().gather(whole, part, name)
            raise KeyboardInterrupt

    others = Interrupted(0, 2)
    model = fresh("mini")
    given = inputs("mini", scenario.device)
    with swapped(model, ARGS, others), torch.no_grad():
        with pytest.raises(KeyboardInterrupt):
            model(**given)
        for _ in range(2):
            with pytest.raises(StateError, match="was interrupted"):
                model(**given)
    assert len(others.gathered) == 1


def test_closing_tells_the_others_of_what_was_promised(scenario: Scenario) -> None:
    """A gather that was announced and not called, because an interrupt came between."""
    others = Others(0, 2)
    model = fresh("mini")
    with swapped(model, ARGS, others) as swap, torch.no_grad():
        complete = Gathers.complete_copied
        Gathers.complete_copied = lambda self: None  # type: ignore[method-assign]
        try:
            model(**inputs("mini", scenario.device))
        finally:
            Gathers.complete_copied = complete  # type: ignore[method-assign]
        assert swap.measured().counters.gathers == len(others.gathered) < len(others.posted)
    assert len(others.withdrawn) == 1
