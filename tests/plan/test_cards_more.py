"""Laptop, Turing, workstation and cloud cards: as they name themselves, and in which dtype."""

import pytest

from blockswap.plan.inputs.cards import CARDS, find_card, machine_of_card


@pytest.mark.parametrize(
    ("written", "meant", "tflops"),
    [
        ("Tesla T4", "T4", 65),
        ("NVIDIA A10G", "A10G", 70),
        ("NVIDIA A10", "A10", 125),
        ("L40S", "L40S", 362),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000", 503.8),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000", 503.8),
        ("NVIDIA GeForce RTX 2080 Ti", "RTX 2080 Ti", 53.8),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", "RTX 3060 Laptop", 26.2),
        ("rtx 4060 laptop", "RTX 4060 Laptop", 29.1),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada", 364.2),
        ("NVIDIA RTX A6000", "RTX A6000", 154.8),
        ("Tesla V100-SXM2-32GB", "V100 32GB", 112),
        ("NVIDIA H200", "H200", 989),
    ],
)
def test_a_card_is_found_as_it_names_itself(written: str, meant: str, tflops: float) -> None:
    card = find_card(written)
    assert card.name == meant
    assert card.tensor_flops / 1e12 == pytest.approx(tflops, abs=0.1)


def test_only_turing_and_volta_have_no_bf16() -> None:
    without = {card.name.split()[0] for card in CARDS if not card.bf16}
    assert without == {"T4", "V100", "RTX"}
    for card in CARDS:
        rates = dict(machine_of_card(card).flops)
        assert ("bfloat16" in rates) is card.bf16
        assert (card.name.startswith("RTX 20") or card.name[:2] in {"T4", "V1"}) is not card.bf16
        assert f"in {card.half} on paper" in machine_of_card(card).source
