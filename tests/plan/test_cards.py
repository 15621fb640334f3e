"""The table of cards: names people write, figures that agree with what vendors print."""

import pytest

from blockswap.errors import ArgsError
from blockswap.plan.inputs.cards import (
    CARDS,
    LANE_RATES,
    LINK_SHARE,
    SUSTAINED_SHARE,
    find_card,
    machine_of_card,
)
from blockswap.plan.inputs.machine import DiskFigures
from blockswap.units import GIB


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("  NVIDIA GeForce RTX-4090  ", "RTX 4090"),
        ("RTX 4090 24GB", "RTX 4090"),
        ("4060 ti", "RTX 4060 Ti 8GB"),
        ("4060Ti 16 GB", "RTX 4060 Ti 16GB"),
        ("RTX 4070 TI SUPER", "RTX 4070 Ti Super"),
        ("4070", "RTX 4070"),
        ("3060", "RTX 3060 12GB"),
        ("RTX 3080", "RTX 3080 10GB"),
        ("a100", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("H100 PCIe", "H100 PCIe"),
        ("NVIDIA L4", "L4"),
        ("AMD Radeon RX 7900 XTX", "RX 7900 XTX"),
        ("7900xtx", "RX 7900 XTX"),
        ("Intel(R) Arc(TM) B580 Graphics", "Arc B580"),
    ],
)
def test_names_are_forgiving(written: str, meant: str) -> None:
    assert find_card(written).name == meant


def test_every_card_is_found_by_its_own_name() -> None:
    assert [find_card(card.name) for card in CARDS] == list(CARDS)


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("RTX 4095", "did you mean RTX 4090"),
        ("4090 48GB", "did you mean RTX 4090?"),
        ("RTX 4090 Laptop GPU", "did you mean RTX 4090?"),
        ("4060 Ti 12GB", "did you mean RTX 4060 or RTX 4060 Ti 8GB or RTX 4060 Ti 16GB?"),
        ("7900 XT", "did you mean RX 7900 XTX?"),
        ("Voodoo 2", "known are RTX 3060 12GB, "),
        ("", "known are RTX 3060 12GB, "),
        ("NVIDIA", "known are RTX 3060 12GB, "),
    ],
)
def test_an_unknown_card_is_one_sentence_with_near_matches(written: str, hint: str) -> None:
    with pytest.raises(ArgsError) as refused:
        find_card(written)
    assert f"card {written!r} is not in the table of cards: {hint}" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [  # as NVIDIA's architecture white papers print them, dense, accumulating in fp32
        ("RTX 3080", 59.5),
        ("RTX 3090", 71.2),
        ("RTX 4080", 97.5),
        ("RTX 4090", 165.2),
        ("RTX 5080", 112.6),
        ("RTX 5090", 209.5),
    ],
)
def test_rates_from_cores_and_clock_are_those_in_print(name: str, tflops: float) -> None:
    assert find_card(name).tensor_flops / 1e12 == pytest.approx(tflops, abs=0.1)


def test_a_card_becomes_a_machine_by_the_stated_shares() -> None:
    disk = DiskFigures(3e9, 4, 2**23, True)
    card = find_card("RTX 4060")
    machine = machine_of_card(card, host_bytes=32 * GIB, disk=disk)
    rate = dict(machine.flops)
    assert rate["bfloat16"] == rate["float16"] == card.tensor_flops * SUSTAINED_SHARE
    assert rate["float32"] == card.flops * SUSTAINED_SHARE
    assert machine.pinned_link == LANE_RATES[4] * 8 * LINK_SHARE
    assert machine.pageable_link is None
    assert (machine.device_bytes, machine.host_bytes) == (8 * GIB, 32 * GIB)
    assert machine.disk is disk
    assert not machine.on_host


def test_every_row_is_whole_and_says_where_it_comes_from() -> None:
    assert len({card.name for card in CARDS}) == len(CARDS)
    for card in CARDS:
        assert card.tensor_flops > card.flops > 0
        assert card.device_bytes % GIB == 0
        assert 100e9 < card.memory_rate < 10e12
        assert card.pcie[0] in LANE_RATES
        assert card.pcie[1] in (8, 16)
        source = machine_of_card(card).source
        assert "specification" in source or "data sheet" in source
        assert "as of 20" in source
        assert "assumed" in source
