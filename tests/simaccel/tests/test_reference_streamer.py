"""The detector on a whole streamer: silent when all waits are there, precise when one is not."""

from __future__ import annotations

import pytest
import torch
from reference_streamer import ReferenceStreamer

import simaccel as sim

ELEMENTS = 250_000  # 1 MB in fp32
BLOCKS = 6
SECONDS_PER_GB = 1.0  # of every link, so that a block takes 1 ms on each


def file_blocks() -> list[torch.Tensor]:
    return [torch.full((ELEMENTS,), float(2**block)) for block in range(BLOCKS)]


def configure(mode: str, **options) -> None:
    sim.configure(mode=mode, h2d_gb_s=1 / SECONDS_PER_GB, **options)
    sim.reset()


@pytest.mark.parametrize("slots", [2, 3])
def test_right_result_and_no_race(mode, slots):
    configure(mode)
    result = ReferenceStreamer(file_blocks(), slots=slots).forward(
        torch.zeros(ELEMENTS, device="sim")
    )
    assert result.unique().tolist() == [2.0**BLOCKS - 1]
    assert sim.races() == []


MISSING = {
    "allocated": ("write-after-write", "slot 0", "allocation", "copy (host to device)"),
    "drained": ("write-after-read", "staging 0", "copy (host to device)", "read of block 2"),
    "read": ("write-after-read", "staging 0", "copy (host to device)", "read of block 0"),
    "free": ("write-after-read", "slot 0", "block 0", "copy (host to device)"),
    "ready": ("read-after-write", "slot 0", "copy (host to device)", "aten::add"),
}


@pytest.mark.parametrize("wait", MISSING)
def test_each_missing_wait_is_named(mode, wait):
    kind, label, earlier, later = MISSING[wait]
    configure(mode)
    streamer = ReferenceStreamer(file_blocks(), without=[wait])
    with pytest.raises(RuntimeError) as raised:
        streamer.forward(torch.zeros(ELEMENTS, device="sim"))
    race = sim.races()[0]
    assert (race.kind, race.label) == (kind, label)
    assert (race.earlier.op, race.later.op) == (earlier, later)
    for words in (kind, label, earlier, later):
        assert words in str(raised.value)


@pytest.mark.parametrize(
    ("compute_ms", "disk_gb_s", "expected_ms"),
    [
        (3.0, float("inf"), 1 + BLOCKS * 3),  # computing bounds: one copy is exposed
        (0.5, float("inf"), BLOCKS * 1 + 0.5),  # the link bounds: one forward is exposed
        (0.5, 0.5, BLOCKS * 2 + 1 + 0.5),  # the disk bounds: the last copy and forward, too
    ],
    ids=["compute", "link", "disk"],
)
def test_step_time_is_the_theory(mode, compute_ms, disk_gb_s, expected_ms):
    configure(mode, disk_gb_s=disk_gb_s)
    x = torch.zeros(ELEMENTS, device="sim")
    streamer = ReferenceStreamer(file_blocks(), slots=3, compute_seconds=compute_ms * 1e-3)
    torch.accelerator.synchronize()
    began = sim.clock.now()
    streamer.forward(x)
    torch.accelerator.synchronize()
    assert (sim.clock.now() - began) * 1e3 == pytest.approx(expected_ms, rel=1e-9)


def test_same_time_on_every_run(mode):
    def run() -> float:
        configure(mode, disk_gb_s=0.7, launch_seconds=7e-6)
        streamer = ReferenceStreamer(file_blocks(), compute_seconds=1.3e-3)
        streamer.forward(torch.zeros(ELEMENTS, device="sim"))
        torch.accelerator.synchronize()
        return sim.clock.now()

    assert len({run() for _ in range(5)}) == 1
