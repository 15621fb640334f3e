"""When phases are over: seconds by the machine's rates, and the step at which experts change."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from whole import request_for

from blockswap.generate.costs import condition_cost, decode_cost, text_cost
from blockswap.generate.run import make_videos, prepare
from blockswap.plan.inputs.machine import DiskFigures, Machine

RATE, DISK = 1e9, 1e8
FAST = Machine(
    "m", on_host=True, flops=(("float32", RATE),), disk=DiskFigures(DISK, 4, 2**20, direct=True)
)


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_seconds_are_work_and_reading(
    kind: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    request = request_for(kind, tmp_path, prompts=("a ball", "a cat"))
    job, plan = prepare(folders(kind), request, tmp_path / "c.mp4", device="cpu", machine=FAST)
    decode, condition = decode_cost(job, tiled=False).flops, condition_cost(job, tiled=False).flops
    work = {"encode": 3 * text_cost(job).flops, "decode": 2 * decode}  # one negative for both
    if kind == "i2v":
        work |= {"condition": 2 * condition, "decode": 2 * (decode + condition)}
    told = {phase.name: phase for phase in plan.phases}
    for name, flops in work.items():
        assert flops > 0
        expected = flops / RATE + told[name].read_bytes / DISK
        assert told[name].seconds == pytest.approx(expected)
    assert told["sample"].seconds is not None
    assert told["write"].seconds is None, "of which no rate is known"
    slow = replace(FAST, disk=None)
    _, plan = prepare(folders(kind), request, tmp_path / "c.mp4", device="cpu", machine=slow)
    assert all(phase.seconds is None for phase in plan.phases if phase.name in work)


@pytest.mark.parametrize("steps", [1, 4])
def test_when_the_experts_change(
    steps: int, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """What is said is what diffusers' loop does: counted by the calls of each expert."""
    asked = request_for("t2v", tmp_path, steps=steps, guidance=1.0)
    job, plan = prepare(folders("two-experts"), asked, tmp_path / "c.mp4", device="cpu")
    calls: dict[int, int] = {}

    def count(module: torch.nn.Module, *_: object) -> None:
        if type(module).__name__ == "WanTransformer3DModel":
            calls[id(module)] = calls.get(id(module), 0) + 1

    with torch.nn.modules.module.register_module_forward_pre_hook(count):
        make_videos(job, plan)
    first, *second = calls.values()
    said = f"the experts change after step {first} of {steps}: "
    if not second:
        said = f"all {steps} steps are those of the expert of high noise"
    assert sum(note.startswith(said) for note in plan.notes) == 1, plan.notes
