"""Long work treated well: several prompts, a full disk, spoilt states, two runs at once."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from whole import by_us, request_for

from blockswap.errors import OutputError, StateError
from blockswap.generate.run import make_videos, prepare
from blockswap.generate.state import RunState, claimed, read_state, write_state
from blockswap.plan.inputs.machine import Machine
from mounts import mounted

CPU = torch.device("cpu")


class Stopped(Exception):
    """What a test ends a run with."""


def stop_at(phase: str, done: int) -> Callable[[str, int, int], None]:
    def progress(name: str, now: int, _total: int) -> None:
        if (name, now) == (phase, done):
            raise Stopped

    return progress


def test_several_prompts_of_which_one_fails(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder, output = folders("t2v"), tmp_path / "clip.mp4"
    request = request_for("t2v", tmp_path, prompts=("a red ball", "a blue cat"), steps=2)
    expected, _, _ = by_us(folder, request, tmp_path / "whole.mp4", "cpu")
    job, plan = prepare(folder, request, output, device="cpu")
    found: dict[int, np.ndarray] = {}
    with pytest.raises(Stopped):  # while the second one is decoded
        make_videos(job, plan, progress=stop_at("decode", 2), on_frames=found.__setitem__)
    first, second = job.outputs
    assert (first.exists(), second.exists()) == (True, False)
    before = first.stat().st_mtime_ns
    found.pop(1)
    made = make_videos(job, plan, resume=True, on_frames=found.__setitem__)
    assert [clip.steps_computed for clip in made.clips] == [0, 0]
    assert first.stat().st_mtime_ns == before, "what is written is not decoded again"
    assert all(np.array_equal(found[clip], expected[clip]) for clip in (0, 1))
    assert list(tmp_path.glob("*.resume*")) == []


@pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
def test_many_prompts_take_no_more_of_the_device_than_one(
    folders: Callable[[str], Path], tmp_path: Path, sim_device: torch.device, machine: Machine
) -> None:
    """What is sampled waits on the disk; when the run goes on, too."""
    folder, output, one = folders("t2v"), tmp_path / "clip.mp4", tmp_path / "one.mp4"
    request = request_for("t2v", tmp_path, steps=2)
    _, alone, _ = by_us(folder, request, one, sim_device, machine=machine)
    asked = replace(request, prompts=("a red ball", "a blue cat", "a ball", "a cat"))
    job, plan = prepare(folder, asked, output, device=sim_device, machine=machine)
    with pytest.raises(Stopped):
        make_videos(job, plan, progress=stop_at("decode", 2))
    made = make_videos(job, plan, resume=True)
    assert made.device_peaks["decode"] == alone.device_peaks["decode"]
    for path in job.outputs:
        path.unlink()
    made = make_videos(job, plan)
    for phase in ("sample", "decode"):
        assert made.device_peaks[phase] == alone.device_peaks[phase]


def test_a_state_that_somebody_removes(folders: Callable[[str], Path], tmp_path: Path) -> None:
    request = request_for("t2v", tmp_path, steps=2, guidance=1.0)
    job, plan = prepare(folders("t2v"), request, tmp_path / "o.mp4", device="cpu")

    def remove(name: str, done: int, _total: int) -> None:
        if (name, done) == ("sample", 2):
            (tmp_path / "o.mp4.resume").unlink()

    with pytest.raises(StateError, match="was removed while the run"):
        make_videos(job, plan, progress=remove)


def test_prompts_that_changed_before_it_goes_on(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, output = folders("t2v"), tmp_path / "clip.mp4"
    how: dict[str, Any] = {"steps": 2, "guidance": 1.0}
    request = request_for("t2v", tmp_path, prompts=("a red ball", "a blue cat"), **how)
    job, plan = prepare(folder, request, output, device="cpu")
    with pytest.raises(Stopped):
        make_videos(job, plan, progress=stop_at("sample", 1))
    other = request_for("t2v", tmp_path, prompts=("a blue cat", "a red ball"), **how)
    with pytest.raises(StateError, match="prompt was 'a red ball' then and is 'a blue cat' now"):
        make_videos(*prepare(folder, other, output, device="cpu"), resume=True)
    longer = request_for("t2v", tmp_path, prompts=("a red ball", "a cat"), **how)
    made = make_videos(*prepare(folder, longer, output, device="cpu"), resume=True)
    assert [clip.steps_computed for clip in made.clips] == [1, 2]


@pytest.mark.root
@pytest.mark.parametrize(("phase", "done", "kept"), [("sample", 1, 1), ("write", 1, 2)])
def test_a_disk_that_becomes_full(
    phase: str, done: int, kept: int, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, request = folders("t2v"), request_for("t2v", tmp_path, steps=2, guidance=1.0)
    (expected,), _, _ = by_us(folder, request, tmp_path / "whole.mp4", "cpu")
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as small:
        job, plan = prepare(folder, request, small / "clip.mp4", device="cpu")
        filling = small / "filling"

        def fill(name: str, now: int, _total: int) -> None:
            if (name, now) == (phase, done):
                with filling.open("wb", buffering=0) as file:
                    while os.fstatvfs(file.fileno()).f_bavail:
                        file.write(bytes(4096))

        with pytest.raises(OutputError, match=r"No space left on device.*room"):
            make_videos(job, plan, progress=fill)
        assert sorted(path.name for path in small.iterdir()) == ["clip.mp4.resume", "filling"]
        filling.unlink()
        found: dict[int, np.ndarray] = {}
        made = make_videos(job, plan, resume=True, on_frames=found.__setitem__)
        assert made.clips[0].steps_computed == 2 - kept
        assert np.array_equal(found[0], expected)


def test_states_cut_short_or_with_a_bit_turned(tmp_path: Path) -> None:
    path = tmp_path / "o.mp4.resume"
    state = RunState(1, 4, {"latents": torch.randn(2, 3).bfloat16(), "n": [1, 2.5]})
    write_state(path, {"seed": "1"}, state)
    whole = path.read_bytes()
    assert read_state(path, {"seed": "1"}, CPU) is not None
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place])
        with pytest.raises(StateError, match="no state of a run"):
            read_state(path, {"seed": "1"}, CPU)
        turned = bytearray(whole)
        turned[place] ^= 1 << place % 8
        path.write_bytes(turned)
        with pytest.raises(StateError, match=r"no state of a run|state of another run"):
            read_state(path, {"seed": "1"}, CPU)


def test_two_runs_at_once(folders: Callable[[str], Path], tmp_path: Path) -> None:
    request = request_for("t2v", tmp_path, steps=2, guidance=1.0)
    job, plan = prepare(folders("t2v"), request, tmp_path / "o.mp4", device="cpu")
    second: list[str] = []

    def begin_another(name: str, _done: int, _total: int) -> None:
        if name == "sample" and not second:
            for resume in (False, True):
                with pytest.raises(StateError, match="is being made by another run") as told:
                    make_videos(job, plan, resume=resume)
                second.append(str(told.value))

    made = make_videos(job, plan, progress=begin_another)
    assert made.clips[0].steps_computed == 2
    assert len(second) == 2
    with claimed(job.outputs):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.mp4"]
