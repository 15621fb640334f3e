"""`blockswap demo`: what it asks the engine for, what it says, and how it ends."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from blockswap import BlockSwapArgs
from blockswap.cli import demo_run
from blockswap.cli.app import app
from blockswap.demo.latents import CHANNELS
from blockswap.demo.weights import weights_path
from blockswap.errors import PlanError
from blockswap.events import Counters, Measured
from blockswap.plan.swap_plan import PlannedUnit, SwapPlan
from blockswap.report import Summary, draw_timeline, summarise, write_trace

runner = CliRunner()

FILES = ("demo.mp4", "contact_sheet.png", "timeline.png", "trace.json")
PLAN = SwapPlan(
    device="cpu",
    units=tuple(
        PlannedUnit(f"blocks.{i}", "disk" if i % 4 else "resident", 1 << 20) for i in range(8)
    ),
    slots=2,
    slot_bytes=1 << 20,
    prefetch=1,
    rest_bytes=1 << 20,
    decode_bytes=0,
    device_bytes=5 << 20,
    reserve_bytes=0,
    pinned_bytes=0,
    staging_buffers=0,
    staging_bytes=0,
    copied_bytes_per_forward=0,
    read_bytes_per_forward=6 << 20,
    sentences=("6 of 8 blocks are streamed, as asked with [brackets]",),
)


class Model(torch.nn.Module):
    """Answers like the demo's transformer, `offset` away from the truth."""

    def __init__(self, offset: float = 0.0, error: BaseException | None = None) -> None:
        super().__init__()
        self.patch_embedding = torch.nn.Linear(1, 1)
        self.offset, self.error = offset, error

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        if self.error is not None:
            raise self.error
        return (hidden_states[:, :CHANNELS] * 0.5 + self.offset,)


@dataclass
class FakeSwap:
    closed: int = 0

    def report(self) -> Summary:
        return summarise(PLAN, Measured((), Counters(forwards=1)))

    def timeline(self, path: Path) -> None:
        draw_timeline(PLAN, Measured(()), path)

    def trace(self, path: Path) -> None:
        write_trace(PLAN, Measured(()), path)

    def close(self) -> None:
        self.closed += 1


@dataclass
class Engine:
    """Stands in for `open_transformer`; hands out `models` in turn."""

    models: list[Model]
    asked: list[tuple[Path, BlockSwapArgs, str]] = field(default_factory=list)
    swaps: list[FakeSwap] = field(default_factory=list)

    def __call__(self, path: Path, args: BlockSwapArgs, *, device: str, mesh: None = None) -> Model:
        self.asked.append((path, args, device))
        model, swap = self.models[len(self.swaps)], FakeSwap()
        self.swaps.append(swap)
        object.__setattr__(model, "blockswap", swap)
        return model


def engine_of(monkeypatch: pytest.MonkeyPatch, *models: Model) -> Engine:
    engine = Engine(list(models))
    monkeypatch.setattr(demo_run, "open_transformer", engine)
    return engine


def test_both_ways_equal_is_said_and_everything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(monkeypatch, Model(), Model())
    out = tmp_path / "new" / "folder"
    result = runner.invoke(app, ["demo", "--out", str(out), "--steps", "2"])
    assert result.exit_code == 0, result.output
    assert "equal to the last bit: all 2 forwards of 'red ball right'" in result.stdout
    assert "6 of 8 blocks streamed" in result.stdout
    assert "as asked with [brackets]" in result.stdout
    assert all(str(out / name) in result.stdout for name in FILES)
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert [swap.closed for swap in engine.swaps] == [1, 1]


def test_the_model_is_opened_loaded_first_and_streamed_from_its_file_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(monkeypatch, Model(), Model())
    runner.invoke(app, ["demo", "--out", str(tmp_path), "--steps", "1"])
    (first, loaded, _), (second, streamed, device) = engine.asked
    assert first == second == weights_path()
    assert loaded == BlockSwapArgs(blocks_to_swap=0)
    assert streamed == BlockSwapArgs(blocks_to_swap=6)
    assert device == "cpu"


@pytest.mark.parametrize(
    ("options", "args"),
    [
        (["--blocks", "0,2-3"], BlockSwapArgs(blocks="0,2-3")),
        (["--blocks-to-swap", "3"], BlockSwapArgs(blocks_to_swap=3)),
        (["--vram", "4MiB"], BlockSwapArgs(vram_budget="4MiB")),
        (
            ["--ram", "8MiB", "--prefetch", "0", "--debug"],
            BlockSwapArgs(
                blocks_to_swap=6, ram_budget="8MiB", prefetch_blocks=0, block_swap_debug=True
            ),
        ),
    ],
)
def test_options_become_arguments_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], args: BlockSwapArgs
) -> None:
    engine = engine_of(monkeypatch, Model(), Model())
    result = runner.invoke(app, ["demo", "--out", str(tmp_path), "--steps", "1", *options])
    assert result.exit_code == 0, result.output
    assert engine.asked[1][1] == args


def test_an_accelerator_streams_from_the_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[demo_run.DemoRequest] = []

    def refuse(request: demo_run.DemoRequest, progress: demo_run.Progress) -> None:
        asked.append(request)
        raise PlanError("enough seen")

    monkeypatch.setattr(demo_run, "run_demo", refuse)
    runner.invoke(app, ["demo", "--out", str(tmp_path), "--device", "cuda"])
    runner.invoke(app, ["demo", "--out", str(tmp_path), "--device", "cuda", "--ram", "1GiB"])
    assert [request.args.ram_budget for request in asked] == [0, 2**30]


def test_a_difference_in_the_last_bit_is_loud_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far too small to change one of the clip's 256 levels.
    engine = engine_of(monkeypatch, Model(), Model(offset=1e-6))
    result = runner.invoke(app, ["demo", "--out", str(tmp_path), "--steps", "1"])
    assert result.exit_code == 1
    assert "NOT EQUAL: 1 of 1 forwards differ" in result.stdout
    assert "equal to the last bit" not in result.stdout
    assert [swap.closed for swap in engine.swaps] == [1, 1]


@pytest.mark.parametrize(
    ("error", "code"), [(PlanError("plan needs 9 MiB"), 2), (KeyboardInterrupt(), 130)]
)
def test_an_error_in_a_step_closes_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    engine = engine_of(monkeypatch, Model(), Model(error=error))
    result = runner.invoke(app, ["demo", "--out", str(tmp_path), "--steps", "1"])
    assert result.exit_code == code
    assert result.stderr.count("\n") == 1
    assert [swap.closed for swap in engine.swaps] == [1, 1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["red cow right"], "'cow'"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--blocks", "3-1"], "Invalid range: '3-1'"),
        (["--blocks", "a"], "Invalid integer: 'a'"),
        (["--blocks", "1,2", "--blocks-to-swap", "5"], "names 2 blocks"),
        (["--vram", "lots"], "'lots' is no size"),
        (["--out", "file/below"], "it is, or lies below, a file"),
        (["--out", "file"], "it is, or lies below, a file"),
    ],
)
def test_mistakes_are_refused_before_a_model_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    engine = engine_of(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    result = runner.invoke(app, ["demo", *arguments])
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert engine.asked == []


def test_a_full_disk_is_refused_before_a_model_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blockswap.cli import outputs

    class Usage:
        free = 1 << 20

    engine = engine_of(monkeypatch)
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda folder: Usage)
    result = runner.invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "32.0 MiB are needed and 1.0 MiB are free" in result.stderr
    assert engine.asked == []


def test_a_folder_that_takes_no_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blockswap.cli import outputs

    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", refuse)
    result = runner.invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert f"cannot write into {tmp_path}: Permission denied" in result.stderr


def test_the_real_model_streams_to_the_last_bit(tmp_path: Path) -> None:
    result = runner.invoke(app, ["demo", "blue square up", "--out", str(tmp_path), "--steps", "1"])
    assert result.exit_code == 0, result.output
    assert "equal to the last bit: all 1 forwards" in result.stdout
    trace = json.loads((tmp_path / "trace.json").read_text())
    placement = trace["otherData"]["placement"]
    assert len(placement["disk"]["names"]) == 6
    assert trace["otherData"]["times"]["forwards"] == 1
    with Image.open(tmp_path / "timeline.png") as picture:
        assert picture.width == 1600
    assert (tmp_path / "demo.mp4").stat().st_size > 0


@pytest.mark.parametrize(
    "options", [["--ram", "1KiB"], ["--vram", "1KiB"], ["--blocks", "0-99"], ["--blocks", "x"]]
)
def test_what_cannot_be_streamed_is_refused_before_the_loaded_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    engine = engine_of(monkeypatch, Model(), Model())
    result = runner.invoke(app, ["demo", "--out", str(tmp_path), "--steps", "1", *options])
    assert result.exit_code == 2, result.output
    assert not engine.asked
