"""Whole plans, as figures and sentences, against the files kept."""

import os
from pathlib import Path

import pytest
from plan_samples import CASES, planned, printed

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", CASES)
def test_a_plan_reads_as_its_golden_file(name):
    """`BLOCKSWAP_WRITE_GOLDEN=1` writes the files anew."""
    text, path = printed(planned(CASES[name].facts, **CASES[name].wish)), GOLDEN / f"{name}.txt"
    if os.environ.get("BLOCKSWAP_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_golden_file_belongs_to_a_case():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)
