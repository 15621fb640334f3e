"""When a plan cuts the forward in pieces: only where the whole does not fit, or as asked."""

from dataclasses import replace
from typing import Any

import pytest
from plan_samples import blocks, layout_of, machine

from blockswap.errors import ArgsError, PlanError
from blockswap.plan import Foresight, SwapPlan, make_plan
from blockswap.plan.inputs.foresight import Speeds
from blockswap.plan.inputs.pieces import InPieces
from blockswap.selection import BlockSwapArgs, select
from blockswap.units import MIB

NEEDS = {4096: 300 * MIB, 2048: 200 * MIB}
WHOLE = 1000 * MIB
TIGHT = 400 * MIB  # a little more than the larger pieces need
FACTS = machine(blocks(8, 10 * MIB), device_free_bytes=None)


def foresight(speeds: Speeds | None = None, asked: list[int] | None = None) -> Foresight:
    def activations(tokens: int) -> int:
        if asked is not None:
            asked.append(tokens)
        return NEEDS[tokens]

    pieces = InPieces((4096, 2048), activations, lambda nbytes: nbytes // 10)
    return Foresight("a clip", WHOLE, WHOLE // 10, speeds, pieces)


def planned(known: Foresight, **args: Any) -> SwapPlan:
    given = BlockSwapArgs(**args)
    return make_plan(FACTS, select(given, layout_of(FACTS)), given, known)


def weights() -> int:
    """Of the least plan and of the one that keeps it all."""
    return planned(replace(foresight(), in_pieces=None), vram_budget=1 << 40).device_bytes


def test_whole_where_it_fits_and_pieces_are_not_even_followed() -> None:
    asked: list[int] = []
    plan = planned(foresight(asked=asked), vram_budget=weights() + WHOLE * 2)
    assert plan.chunk_tokens is None
    assert plan.activation_bytes == WHOLE
    assert not asked
    assert not [said for said in plan.sentences if "pieces" in said]


def test_pieces_where_the_whole_does_not_fit() -> None:
    plan = planned(foresight(), vram_budget=TIGHT)
    assert plan.chunk_tokens == 4096
    assert plan.activation_bytes == NEEDS[4096]
    said = [said for said in plan.sentences if "in pieces of at most 4,096 tokens" in said]
    assert len(said) == 1
    assert "1000.0 MiB" in said[0]
    assert "300.0 MiB" in said[0]


def test_never_is_never_and_says_what_it_said() -> None:
    with pytest.raises(PlanError):
        planned(foresight(), vram_budget=TIGHT, chunk_tokens=0)
    plan = planned(foresight(), vram_budget=weights() + WHOLE * 2, chunk_tokens=0)
    assert plan.chunk_tokens == 0


def test_as_asked() -> None:
    plan = planned(foresight(), vram_budget=weights() + WHOLE * 2, chunk_tokens=2048)
    assert plan.chunk_tokens == 2048
    assert plan.activation_bytes == NEEDS[2048]
    assert [s for s in plan.sentences if "at most 2,048 tokens, as asked: 200.0 MiB" in s]


def test_asked_without_a_clip() -> None:
    args = BlockSwapArgs(blocks_to_swap=1, chunk_tokens=512)
    plan = make_plan(FACTS, select(args, layout_of(FACTS)), args)
    assert plan.chunk_tokens == 512
    assert [s for s in plan.sentences if "at most 512 tokens, as asked" in s]


@pytest.mark.parametrize("tokens", [1, 33, 63, -1, "many", 1.5])
def test_too_few_or_no_number(tokens: Any) -> None:
    with pytest.raises(ArgsError, match="chunk_tokens"):
        BlockSwapArgs(chunk_tokens=tokens)


def test_arguments_survive_the_dictionary_of_other_packs() -> None:
    args = BlockSwapArgs(blocks="0-1", chunk_tokens=2048)
    mapping = args.to_mapping()
    assert "chunk_tokens" not in mapping
    assert BlockSwapArgs.from_mapping(mapping) == args


def test_nothing_fits_and_the_least_is_that_of_the_smallest_pieces() -> None:
    with pytest.raises(PlanError) as caught:
        planned(foresight(), vram_budget=NEEDS[2048])
    least = caught.value.least_bytes
    assert least is not None
    plan = planned(foresight(), vram_budget=least)
    assert plan.chunk_tokens == 2048
    assert plan.peak_bytes is not None
    assert plan.peak_bytes <= least
    with pytest.raises(PlanError):
        planned(foresight(), vram_budget=least - 1)


def test_never_above_the_budget_from_the_least_to_all() -> None:
    with pytest.raises(PlanError) as caught:
        planned(foresight(), vram_budget=1)
    least, most = caught.value.least_bytes, weights() + WHOLE * 2
    assert least is not None
    sizes: list[int | None] = []
    for step in range(65):
        budget = least + (most - least) * step // 64
        plan = planned(foresight(), vram_budget=budget)
        assert plan.peak_bytes is not None
        assert plan.peak_bytes <= budget
        sizes.append(plan.chunk_tokens)
    assert sizes[0] == 2048
    assert sizes[-1] is None
    order = [2048, 4096, None]
    assert [order.index(size) for size in sizes] == sorted(order.index(size) for size in sizes)


def test_where_speeds_are_known_smaller_pieces_are_for_speed_alone() -> None:
    slow = Speeds(dict.fromkeys((unit.name for unit in FACTS.units), 1e-6), link=1e6)
    fast = Speeds(dict.fromkeys((unit.name for unit in FACTS.units), 1e6), link=1e12)
    assert planned(foresight(fast), vram_budget=TIGHT).chunk_tokens == 4096
    plan = planned(foresight(slow), vram_budget=TIGHT)
    other = planned(foresight(slow), vram_budget=TIGHT, chunk_tokens=4096)
    assert plan.timing is not None
    assert other.timing is not None
    assert plan.timing.step_seconds <= other.timing.step_seconds
