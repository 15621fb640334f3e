"""The plan as a value answers what others ask of it."""

import dataclasses

import pytest
from plan_samples import FILE, blocks, machine, planned

PLAN = planned(machine(blocks(6), **FILE), blocks="1-5", ram_budget=400)


def test_residents_and_streamed_are_names_in_execution_order():
    assert PLAN.residents == ("blocks.0",)
    assert PLAN.streamed == ("blocks.1", "blocks.2", "blocks.3", "blocks.4", "blocks.5")


def test_the_map_has_one_letter_a_unit():
    assert PLAN.block_map() == "Rdmdmd"


@pytest.mark.parametrize(("name", "tier"), [("blocks.0", "resident"), ("blocks.2", "ram")])
def test_a_tier_is_found_by_name(name, tier):
    assert PLAN.tier_of(name) == tier


def test_an_unknown_name_has_no_tier():
    with pytest.raises(KeyError, match=r"blocks\.6"):
        PLAN.tier_of("blocks.6")


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.slots = 1
