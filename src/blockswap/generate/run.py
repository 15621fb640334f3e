"""A run from request to files: which phases follow each other, and what each of them measured."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import StateError
from ..plan.inputs.machine import Machine
from ..report.output import PNG, refuse_other
from ..store.host_memory import peak_host_bytes, return_freed_memory
from ..stream.device import open_device
from ..stream.peaks import PeakWatch
from .costs import latent_shape
from .decode import OnFrames, decode_all
from .encode import encode
from .host_pipelines import pipeline_name, refuse_last_image
from .inputs import check_inputs
from .job import Job, Progress, silent
from .parts.find import ModelFiles, find_components
from .parts.tiny import TINY, tiny_components
from .preview import preview_path
from .request import VideoRequest, check_room, output_paths, refuse_own_inputs
from .run_plan import RunPlan, plan_run, refuse_unfit
from .sample import sample_all
from .state import claimed, state_path
from .video import require_writer


@dataclass(frozen=True, slots=True)
class Clip:
    """One finished video: its file, and how many of its steps this run computed."""

    path: Path
    steps_computed: int


@dataclass(frozen=True, slots=True)
class Made:
    """What a run made. Peaks are bytes by phase; of the device none where it does not count."""

    clips: tuple[Clip, ...]
    encoded: int
    device_peaks: dict[str, int]
    host_peak_bytes: int | None


def prepare(
    model: str | os.PathLike[str] | ModelFiles,
    request: VideoRequest,
    output: str | os.PathLike[str],
    *,
    device: str | torch.device,
    machine: Machine | None = None,
) -> tuple[Job, RunPlan]:
    """Checks everything that can be known before the first byte of weights is read, and plans.

    With a `ram_budget` this process gives large memory back as soon as it is freed, from now on.
    Raises ArgsError, CheckpointError, OutputError, PlanError or DeviceError.
    """
    require_writer()
    check_inputs(request)
    outputs = output_paths(output, len(request.prompts))
    pictures = tuple(map(preview_path, outputs)) if request.preview_every else ()
    for path in pictures:
        refuse_other(path, PNG)
    refuse_own_inputs((*outputs, *pictures), request)
    where = open_device(device).torch_device
    pixels = request.width * request.height
    tiny = not isinstance(model, ModelFiles) and str(model) == TINY
    parts = tiny_components() if tiny else find_components(model, pixels=pixels)
    job = Job(parts, request, where, outputs, pipeline_name(parts, request), machine=machine)
    refuse_last_image(parts, request)
    latents = torch.Size(latent_shape(job)).numel()
    # The state holds the latents and the scheduler's history; twice while it is replaced.
    check_room(outputs[0].parent, len(outputs) * (2 * 8 * 4 * latents + request.raw_frame_bytes))
    if request.ram_budget is not None:
        return_freed_memory()
    plan = plan_run(job)
    return replace(job, tiled=plan.tiled), plan


def make_videos(
    job: Job,
    plan: RunPlan,
    *,
    resume: bool = False,
    progress: Progress = silent,
    on_frames: OnFrames = lambda _clip, _frames: None,
) -> Made:
    """Carries a run out. After every step what is done is on the disk, beside the output.

    With `resume` it goes on where an interrupted run of the same request was, to the same frames.
    Raises PlanError where it does not fit, StateError where an unfinished run would be lost or is
    another one, OutputError, and whatever reading the models raises.
    """
    refuse_unfit(plan)
    with claimed(job.outputs):
        if not resume:
            _refuse_unfinished(job)
        return _make(job, plan, resume=resume, progress=progress, on_frames=on_frames)


def _make(
    job: Job, plan: RunPlan, *, resume: bool, progress: Progress, on_frames: OnFrames
) -> Made:
    peaks = _Peaks(job)
    encoded = peaks.of("encode", lambda: encode(job, plan.encoder_args, progress))
    computed = peaks.of(
        "sample",
        lambda: sample_all(job, encoded, plan.args, resume=resume, progress=progress),
    )
    peaks.of("decode", lambda: decode_all(job, encoded, progress, on_frames))
    clips = tuple(Clip(path, steps) for path, steps in zip(job.outputs, computed, strict=True))
    return Made(clips, encoded.encoded, peaks.device, peak_host_bytes())


class _Peaks:
    """The device's peak of each phase, above what was there before the run."""

    def __init__(self, job: Job) -> None:
        self._where = open_device(job.device)
        self._before = self._where.allocated_bytes()
        self.device: dict[str, int] = {}

    def of(self, phase: str, work: Any) -> Any:
        watch = PeakWatch(self._where)
        result = work()
        self._where.synchronize()
        peak = watch.peak_bytes()
        if peak is not None:
            self.device[phase] = peak - self._before
        return result


def unfinished(job: Job) -> list[Path]:
    """The states of earlier runs that lie beside the outputs."""
    return [state for state in map(state_path, job.outputs) if os.path.lexists(state)]


def _refuse_unfinished(job: Job) -> None:
    for path in unfinished(job):
        raise StateError(
            f"{path} is the state of an unfinished run: go on with it by --resume (in Python "
            "resume=True), or remove it to begin anew"
        )
