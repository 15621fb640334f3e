"""Owns the demo's job: one clip made twice, from a model fully loaded and from one streamed."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor

from .. import BlockSwapArgs, Swap, open_transformer, report_of_ranks
from ..demo.sampling import SamplingSettings, generate
from ..demo.video import write_contact_sheet, write_mp4
from ..demo.weights import weights_path
from ..report import Summary
from ..report.output import MP4, PNG, TRACE, refuse_other
from ..report.rank_table import RankSummary
from ..swap.entry.checkpoint_file import plan_transformer
from .outputs import prepare_folder

OUTPUT_BYTES = 32 * 2**20  # far more than the demo's files take
OUTPUTS = {"demo.mp4": MP4, "contact_sheet.png": PNG, "timeline.png": PNG, "trace.json": TRACE}
FULLY_LOADED = BlockSwapArgs(blocks_to_swap=0)

# Told after every step of a pass: which pass, how many steps are done, of how many.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """What to draw, where to, and which blocks to stream meanwhile."""

    prompt: str
    folder: Path
    settings: SamplingSettings
    args: BlockSwapArgs
    device: str
    mesh: Any = None  # of the ranks that make the same clip
    writes: bool = True  # one of them does


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What came of it. `differing` counts forwards whose output was not equal to the last bit."""

    forwards: int
    differing: int
    loaded_seconds: float
    streamed_seconds: float
    summary: Summary
    files: tuple[Path, ...]
    ranks: RankSummary | None = None


@dataclass(slots=True)
class _Pass:
    """One clip, uint8 `[frames, height, width, 3]`, and what the model answered on the way."""

    clip: Tensor
    answers: list[Tensor]
    seconds: float


def run_demo(request: DemoRequest, progress: Progress) -> DemoResult:
    """Makes the clip twice with one seed, compares every answer of the model, writes the files.

    Raises OutputError before any work where the folder cannot take the files, and every error of
    `open_transformer`, before the first pass. The models are closed again whatever happens.
    """
    if request.writes:
        prepare_folder(request.folder, needed_bytes=OUTPUT_BYTES)
        for name, kind in OUTPUTS.items():
            refuse_other(request.folder / name, kind)
    plan_transformer(weights_path(), request.args, device=request.device)
    with _opened(FULLY_LOADED, request.device) as (model, _):
        loaded = _sample(model, request, progress, "fully loaded")
    with _opened(request.args, request.device, request.mesh) as (model, swap):
        streamed = _sample(model, request, progress, "blocks streamed")
        summary = swap.report()
        ranks = None if request.mesh is None else report_of_ranks(swap, request.mesh)
        files = _write_files(streamed.clip, swap, request.folder) if request.writes else ()
    return DemoResult(
        forwards=len(streamed.answers),
        differing=_count_differing(loaded, streamed),
        loaded_seconds=loaded.seconds,
        streamed_seconds=streamed.seconds,
        summary=summary,
        files=files,
        ranks=ranks,
    )


@contextmanager
def _opened(
    args: BlockSwapArgs, device: str, mesh: Any = None
) -> Iterator[tuple[torch.nn.Module, Swap]]:
    model = open_transformer(weights_path(), args, device=device, mesh=mesh)
    swap = cast(Swap, model.blockswap)
    try:
        yield model, swap
    finally:
        swap.close()


def _sample(model: torch.nn.Module, request: DemoRequest, progress: Progress, name: str) -> _Pass:
    answers: list[Tensor] = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        output = model(*args, **kwargs)
        answers.append(output[0].detach().to("cpu", copy=True))
        return output

    started = perf_counter()
    with warnings.catch_warnings():
        # Torch regrets that a norm kept in float32 takes its slower kernel; so it is meant.
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        clip = generate(
            recorded,
            request.prompt,
            request.settings,
            device=request.device,
            # The type of the model's inputs; norms and modulation are float32 beside it.
            dtype=model.get_parameter("patch_embedding.weight").dtype,
            progress=lambda done, steps: progress(name, done, steps),
        )
    return _Pass(clip, answers, perf_counter() - started)


def _count_differing(loaded: _Pass, streamed: _Pass) -> int:
    """Forwards that differ. The clip is compared through the answers it is made of: its 256
    levels a colour could hide a difference in the last bit."""
    pairs = zip(loaded.answers, streamed.answers, strict=True)
    differing = sum(not torch.equal(one, other) for one, other in pairs)
    return differing or int(not torch.equal(loaded.clip, streamed.clip))


def _write_files(clip: Tensor, swap: Swap, folder: Path) -> tuple[Path, ...]:
    mp4, sheet, timeline, trace = files = tuple(folder / name for name in OUTPUTS)
    write_mp4(clip, mp4)
    write_contact_sheet(clip, sheet)
    swap.timeline(timeline)
    swap.trace(trace)
    return files
