"""The phase of the VAE: latents into frames by the pipeline's own decoding, and into a file."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ModelError, StateError
from ..swap.entry.checkpoint_file import empty_transformer
from ..turns.turn import turn_of
from .encode import Encoded
from .host_pipelines import Steering, build_pipeline, steered
from .job import Job, Progress
from .parts.load import load_part
from .preview import preview_path
from .sample import call_arguments, sampling_models, state_of
from .state import RunState, state_path, write_state
from .video import write_video

# Told the frames of a clip before they are written: float32 `[frames, height, width, 3]`, 0 to 1.
OnFrames = Callable[[int, Any], None]


def decode_all(job: Job, encoded: Encoded, progress: Progress, on_frames: OnFrames) -> None:
    """Decodes and writes every clip from its state, and then removes the states.

    Of several clips the states stay until all are written, and say which are: a run that ends in
    between goes on without sampling or decoding one again. The whole pipeline is called with all of
    its steps skipped: what comes before and after the decoder is then diffusers' own code for each
    kind. Raises OutputError, and StateError where a state is gone.
    """
    folders = [part.weights for part in job.parts.transformers]
    empty = [empty_transformer(folder, device=job.device) for folder in folders]
    vae = load_part(job.parts.vae)
    if job.tiled:
        vae.enable_tiling()
    with torch.no_grad(), turn_of(vae, job.device, budget=None, activation_bytes=0):
        for clip in range(len(job.outputs)):
            state = _sampled(job, clip)
            if _is_written(state, job.outputs[clip]):
                continue
            models = sampling_models(job, empty, vae)
            pipe = build_pipeline(job.pipeline, job.parts, models)
            frames = _frames(job, pipe, encoded, clip, state)
            del pipe, models
            on_frames(clip, frames)
            progress("decode", clip + 1, len(job.outputs))
            _write(job, clip, frames, progress)
            if len(job.outputs) > 1:
                kept = {"latents": state.kept["latents"], "written": _stamp(job.outputs[clip])}
                written = RunState(state.done, state.total, kept)
                write_state(state_path(job.outputs[clip]), job.asked(clip), written)
    for path in job.outputs:
        state_path(path).unlink(missing_ok=True)


def _sampled(job: Job, clip: int) -> RunState:
    state = state_of(job, clip, torch.device("cpu"))
    if state is None:
        raise StateError(
            f"{state_path(job.outputs[clip])} was removed while the run that it is of went on: "
            "make the clip again"
        )
    return state


def _is_written(state: RunState, output: Path) -> bool:
    """Whether the clip of this state is at `output`, as it was written from it."""
    return os.path.isfile(output) and state.kept.get("written") == _stamp(output)


def _stamp(output: Path) -> list[int]:
    status = output.stat()
    return [status.st_size, status.st_mtime_ns]


def _frames(job: Job, pipe: Any, encoded: Encoded, clip: int, state: RunState) -> Any:
    # Embeddings and noise are not computed with any more: they stay on the host.
    steered(pipe, Steering(job.device, skip=state.total, image_embeds=encoded.image))
    host = torch.device("cpu")
    given = call_arguments(job, encoded, clip, host)
    if job.pipeline == "WanVideoToVideoPipeline":
        del given["video"]  # it takes that or latents
    (video,) = pipe(**given, latents=state.kept["latents"], output_type="np")
    if not np.isfinite(video[0]).all():
        raise ModelError(
            f"{job.parts.vae.path} decoded finite latents to numbers that are none (NaN): give "
            "another file of that VAE"
        )
    return video[0]


def _write(job: Job, clip: int, frames: Any, progress: Progress) -> None:
    request, path = job.request, job.outputs[clip]

    def as_bytes() -> Iterator[Any]:
        for number, frame in enumerate(frames, 1):
            yield (frame * 255).astype(np.uint8)
            progress("write", number, len(frames))

    write_video(path, as_bytes(), width=request.width, height=request.height, fps=job.fps)
    if request.preview_every:
        preview_path(path).unlink(missing_ok=True)
