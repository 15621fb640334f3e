"""Every figure of a report has one reading: what moves, what is saved, which letter is what."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import MIB, plan_of

from blockswap.events import Measured
from blockswap.plan.swap_plan import PlannedUnit
from blockswap.report import summarise

TEXT, IMAGE = "condition_embedder.text_embedder", "condition_embedder.image_embedder"


@given(st.text("Rm", min_size=1, max_size=9))
def test_on_the_cpu_nothing_in_ram_is_called_streamed(tiers: str) -> None:
    summary = summarise(plan_of(tiers, device="cpu", slots=0, prefetch=0), Measured(()))
    assert re.match(r"0 of \d+ blocks? streamed: on the CPU", summary.status_line())
    assert "from RAM" not in summary.text()


@given(st.text("Rmd", min_size=1, max_size=9))
def test_on_the_cpu_what_is_saved_is_not_called_what_is_on_disk(tiers: str) -> None:
    summary = summarise(plan_of(f"{tiers}d", device="cpu"), Measured(()))
    count = tiers.count("d") + 1
    assert summary.status_line().startswith(f"{count} of {len(tiers) + 1} blocks streamed")
    assert "on disk" not in summary.status_line()
    assert sum(len(g.names) for g in (summary.placement.resident, summary.placement.ram)) == (
        len(tiers) + 1 - count
    )


@pytest.mark.parametrize(
    ("embedders", "words"),
    [
        ((), "RddR"),
        ((TEXT,), "text_embedder R, blocks RddR"),
        ((TEXT, IMAGE), "text_embedder R, image_embedder R, blocks RddR"),
        (("vace_blocks.0", "vace_blocks.1"), "vace_blocks RR, blocks RddR"),
        (("0/blocks.0",), "0/blocks R, blocks RddR"),
    ],
)
def test_a_map_says_which_letter_is_no_block(embedders: tuple[str, ...], words: str) -> None:
    plan = plan_of("RddR")
    more = tuple(PlannedUnit(name, "resident", MIB) for name in embedders)
    plan = replace(plan, units=(*more, *plan.units))
    assert plan.map_words() == words
    assert dict(summarise(plan, Measured(())).rows())["blocks"].startswith(f"{words}  (R resident")
    letters = "".join(part.split()[-1] for part in words.split(", "))
    assert letters == plan.block_map()
