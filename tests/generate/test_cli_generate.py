"""`blockswap generate` with the shipped model: the plan, the video, and the same by resuming."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from whole import by_us

from blockswap import open_transformer
from blockswap.cli.app import app
from blockswap.demo.sampling import SamplingSettings
from blockswap.demo.sampling import generate as draw
from blockswap.demo.weights import weights_path
from blockswap.generate import VideoRequest

SMALL = ["--size", "32x32", "--frames", "9", "--steps", "4", "--guidance", "1", "--device", "cpu"]


def invoke(*args: Any) -> Any:
    return CliRunner().invoke(app, ["generate", "--model", "tiny", *map(str, args)])


def test_the_shipped_model_draws_what_its_own_loop_draws(tmp_path: Path) -> None:
    request = VideoRequest(
        ("red ball right", "blue square up"), width=32, height=32, frames=9, steps=4, guidance=1.0
    )
    clips, made, _ = by_us("tiny", request, tmp_path / "clip.mp4", "cpu")  # type: ignore[arg-type]
    model: Any = open_transformer(weights_path(), device="cpu")
    for prompt, frames in zip(request.prompts, clips, strict=True):
        drawn = draw(model, prompt, SamplingSettings(steps=4), dtype=torch.bfloat16)
        assert np.array_equal((frames * 255).round().astype(np.uint8), drawn.numpy())
    model.blockswap.close()
    assert [clip.path.name for clip in made.clips] == ["clip-1.mp4", "clip-2.mp4"]


def test_a_video_and_what_it_took(tmp_path: Path) -> None:
    output = tmp_path / "ball.mp4"
    told = invoke("--prompt", "red ball right", "--output", output, *SMALL)
    assert told.exit_code == 0, told.output
    assert told.output.startswith("fits: ")
    assert "4 steps computed" in told.output
    with av.open(str(output)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9


def test_a_plan_alone_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "ball.mp4"
    told = invoke("--prompt", "red ball", "--output", output, "--dry-run", *SMALL)
    assert told.exit_code == 0
    assert list(tmp_path.iterdir()) == []
    for ram in ("1MiB", "0"):
        told = invoke("--prompt", "red ball", "--output", output, "--ram", ram, *SMALL)
        assert told.exit_code == 1
        assert told.output.startswith("does not fit: ")


def test_nothing_to_go_on_with_is_told(tmp_path: Path) -> None:
    asked = ["--prompt", "red ball", "--output", tmp_path / "b.mp4", *SMALL, "--steps", "1"]
    told = invoke(*asked, "--resume")
    assert told.exit_code == 0
    assert "nothing to go on with: no state of an unfinished run lies beside" in told.output
    assert "nothing to go on with" not in invoke(*asked).output


def test_what_changes_nothing_is_told(tmp_path: Path) -> None:
    asked = ["--prompt", "red ball", "--output", tmp_path / "ball.mp4", "--dry-run", *SMALL]
    plain = invoke(*asked)
    told = invoke(*asked, "--vram", "8GiB", "--negative", "blue")
    assert told.exit_code == plain.exit_code == 0
    for words in ("8.0 GiB of VRAM were named and nothing is limited by it", "is not read"):
        assert words in told.output
        assert words not in plain.output
    guided = invoke(*asked, "--negative", "blue", "--guidance", "2")
    assert "is not read" not in guided.output


@pytest.mark.parametrize("more", [("--shift", "3"), ("--tokenizer", "t"), ("--high-noise", "h")])
def test_the_shipped_model_takes_no_other_parts(more: tuple[str, str], tmp_path: Path) -> None:
    told = invoke("--prompt", "a", "--output", tmp_path / "o.mp4", *more, *SMALL)
    assert told.exit_code != 0
    assert "beside tiny, which is whole" in str(told.output) + str(told.exception)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--output", "o.mp4"], "one of --prompt and --prompts"),
        (["--prompt", "a", "--size", "large"], "is no size"),
        (["--prompt", "a", "--frames", "8"], "use 5 or 9"),
        (["--prompt", "purple cow", *SMALL], "does not know the word 'cow'"),
    ],
)
def test_refusals(args: list[str], said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    told = invoke(*args)
    assert told.exit_code == 2
    assert said in told.output.replace("\n", " ")
