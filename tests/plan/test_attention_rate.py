"""Attention has a rate of its own: a card's, or the one that was measured."""

from dataclasses import replace

import pytest

from blockswap.plan.inputs.cards import (
    CARDS,
    GEFORCE_ATTENTION,
    HOPPER_ATTENTION,
    SUSTAINED_SHARE,
    find_card,
    machine_of_card,
)
from blockswap.plan.inputs.foresight import speeds_of
from blockswap.plan.inputs.workload import ForwardCost

COST = ForwardCost(
    1, 1, 1, (("blocks.0", 100), ("blocks.1", 40)), 10, attention_flops=(("blocks.0", 60),)
)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_block_takes_its_products_and_its_attention_each_at_its_rate(card):
    machine = machine_of_card(card)
    dtype = "bfloat16" if card.bf16 else "float16"
    speeds = speeds_of(COST, machine, dtype)
    half = card.tensor_flops
    products, attention = half * SUSTAINED_SHARE, half * card.attention_share
    assert speeds.compute_seconds["blocks.0"] == pytest.approx(40 / products + 60 / attention)
    assert speeds.compute_seconds["blocks.1"] == pytest.approx(40 / products)
    assert speeds.rest_seconds == pytest.approx(10 / products)
    assert f"{card.attention_share:.0%} in attention" in machine.source


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("RTX 4090", GEFORCE_ATTENTION),
        ("RTX 4060 Laptop", GEFORCE_ATTENTION),
        ("RTX 5090", GEFORCE_ATTENTION),
        ("RTX 4000 Ada", SUSTAINED_SHARE),
        ("RTX A4000", SUSTAINED_SHARE),
        ("RTX 3090", SUSTAINED_SHARE),
        ("H100 SXM", HOPPER_ATTENTION),
        ("H800", HOPPER_ATTENTION),
        ("A100 80GB", SUSTAINED_SHARE),
    ],
)
def test_shares_are_those_of_the_generation(name, share):
    assert find_card(name).attention_share == share


def test_where_it_is_unknown_attention_goes_by_the_rate_of_products():
    machine = replace(machine_of_card(find_card("RTX 4090")), attention_flops=())
    rate = dict(machine.flops)["bfloat16"]
    assert speeds_of(COST, machine, "bfloat16").compute_seconds["blocks.0"] == 100 / rate
