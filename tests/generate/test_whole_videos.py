"""Frames of a whole run equal diffusers' own, in memory that holds no model beside another."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from tiny_pipelines import KINDS
from whole import as_planned, by_diffusers, by_us, request_for

from blockswap.generate.run import prepare
from blockswap.plan.inputs.machine import Machine

# In CI the accelerator runs every kind; the CPU those that test_single_files does not run on it.
ON_CPU = ("flf", "ti2v-image", "vace", "v2v", "two-experts")
if os.environ.get("BLOCKSWAP_VIDEOS") == "all":
    ON_CPU = KINDS
eager = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)


@pytest.mark.parametrize("kind", ON_CPU)
def test_on_the_cpu(kind: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    request = request_for(kind, tmp_path)
    expected = by_diffusers(kind, folders(kind), request, "cpu")
    output = tmp_path / "clip.mp4"
    (frames,), made, _ = by_us(folders(kind), request, output, "cpu")
    assert np.array_equal(frames, expected)
    assert frames.std() > 0.01
    with av.open(str(output)) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(expected)
    assert [path.name for path in tmp_path.glob("*.resume*")] == []
    assert made.encoded == 2


@eager
@pytest.mark.parametrize("kind", KINDS)
def test_on_an_accelerator_that_holds_one_model_at_most(
    kind: str,
    folders: Callable[[str], Path],
    tmp_path: Path,
    sim_device: torch.device,
    limit: Callable[[int | None], None],
    machine: Machine,
) -> None:
    request, folder = request_for(kind, tmp_path), folders(kind)
    expected = by_diffusers(kind, folder, request, sim_device)
    whole = planned(folder, request, sim_device, machine)
    budget = max(needed for name, needed in whole.items() if name != "sample")
    budget = budget * 5 // 4 if kind == "vace" else budget  # its least beside the clip it follows
    assert whole["sample"] > budget, "the transformers alone do not fit whole"
    limit(budget)
    asked = replace(request, vram_budget=budget)
    output = tmp_path / "clip.mp4"
    (frames,), made, plan = by_us(folder, asked, output, sim_device, machine=machine)
    assert np.array_equal(frames, expected)
    as_planned(made, plan)
    assert max(made.device_peaks.values()) <= budget


def planned(folder: Path, request: Any, device: Any, machine: Machine) -> dict[str, int]:
    """Device bytes of each phase where there is room for everything."""
    _, plan = prepare(folder, request, Path("/tmp/none.mp4"), device=device, machine=machine)
    return {phase.name: phase.device_bytes for phase in plan.phases}
