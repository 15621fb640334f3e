"""The phase of the transformers: steps through diffusers' loop, each kept when it is done."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from ..errors import ModelError
from ..selection import BlockSwapArgs
from ..swap import Outlook, open_experts, open_transformer
from ..swap.entry.checkpoint_file import empty_transformer
from ..swap.guards.open_swaps import is_swapped
from ..turns.turn import leave, settle
from .encode import Encoded
from .host_pipelines import Steering, build_pipeline, restore_scheduler, scheduler_state, steered
from .inputs import image_of, read_frames, read_image
from .job import Job, Progress
from .parts.load import build_empty, load_part
from .preview import Previews
from .state import RunState, read_state, state_path, write_state


class Stage:
    """The transformers of a run: on the meta device until `open`, and again after `close`."""

    def __init__(self, job: Job, args: BlockSwapArgs) -> None:
        self._job, self._args = job, args
        folders = [part.weights for part in job.parts.transformers]
        self.models = [empty_transformer(folder, device=job.device) for folder in folders]
        self._folders = folders
        self._closing = ExitStack()

    @property
    def dtype(self) -> torch.dtype:
        """What the pipeline casts its inputs to."""
        dtype: torch.dtype = self.models[0].dtype
        return dtype

    def open(self) -> None:
        """Puts them on the device, once."""
        if self.is_open:
            return
        job, first = self._job, self.models[0]
        how: dict[str, Any] = {"device": job.device, "workload": workload_of(job, self.dtype)}
        how |= loras_of(job)
        if len(self.models) == 1:
            open_transformer(self._folders[0], self._args, skeleton=first, **how)
        else:
            open_experts(self._folders, self._args, skeletons=self.models, **how)
        for model in self.models:
            self._closing.callback(model.blockswap.close)

    @property
    def is_open(self) -> bool:
        return is_swapped(self.models[0])

    def close(self) -> None:
        """Takes them off the device."""
        self._closing.close()
        settle(self._job.device)

    def expect_turns(
        self, timesteps: torch.Tensor, skip: int, boundary: float | None, *, ends: bool
    ) -> None:
        """Says when the second expert's turn comes, so that its first blocks are there by then,
        and when the last turn is over, where it `ends` with this clip."""
        swaps, each = [model.blockswap for model in self.models], 1 + self._job.request.guided
        steps, high = len(timesteps) - skip, 0
        if len(swaps) > 1 and boundary is not None:
            high = max(0, first_experts_steps(timesteps, boundary) - skip)
        if high and len(swaps) > 1:
            swaps[0].followed_by(swaps[1], after=high * each)
        if ends and steps > high:
            swaps[-1].ends_after((steps - high) * each)


def first_experts_steps(timesteps: torch.Tensor, boundary: float) -> int:
    """How many of the steps the expert of high noise has, as diffusers' pipelines decide it."""
    return int((timesteps.cpu() >= boundary).sum())


def boundary_of(job: Job, scheduler: Any) -> float | None:
    """The timestep below which the expert of low noise has its turn; None without one."""
    ratio = job.parts.boundary_ratio
    return None if ratio is None else ratio * scheduler.config.num_train_timesteps


def workload_of(job: Job, dtype: torch.dtype) -> Any:
    """What a forward is, and on which machine where that is not the probed one."""
    if job.parts.pipeline is not None:
        return None  # the forward of no published clip: planned without its activations
    name = str(dtype).removeprefix("torch.")
    workload = job.request.workload(
        name, job.sampled_frames, per_token=job.timestep_per_token, portable=job.portable
    )
    return workload if job.machine is None else Outlook(workload, job.machine)


def loras_of(job: Job) -> dict[str, Any]:
    """The LoRAs as the ways in take them: a list, or one for each of two experts."""
    loras = job.request.loras_for(len(job.parts.transformers))
    if not any(loras):
        return {}
    return {"loras": loras if len(loras) > 1 else loras[0]}


def call_arguments(job: Job, encoded: Encoded, clip: int, where: torch.device) -> dict[str, Any]:
    """What diffusers' pipeline is called with, embeddings on `where` as they were encoded."""
    request = job.request
    given: dict[str, Any] = {
        "prompt_embeds": encoded.prompts[clip].to(where),
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "return_dict": False,
    }
    if encoded.negative is not None:
        given["negative_prompt_embeds"] = encoded.negative.to(where)
    if job.pipeline != "WanVideoToVideoPipeline":
        given["num_frames"] = request.frames
    if job.pipeline == "WanImageToVideoPipeline":
        given["image"] = image_of(request)
        if request.last_image is not None:
            given["last_image"] = read_image(request.last_image, request)
    elif job.pipeline == "WanVACEPipeline" and request.image is not None:
        given["reference_images"] = [image_of(request)]
    if request.video is not None:
        size = {"width": request.width, "height": request.height, "most": request.frames}
        given["video"] = read_frames(request.video, **size)
    return given


def sample_all(
    job: Job, encoded: Encoded, args: BlockSwapArgs, *, resume: bool, progress: Progress
) -> list[int]:
    """Samples every clip into its state on the disk; how many steps of each were computed.

    Raises StateError for a state of another run; what was sampled before stays on the disk.
    """
    # All states are looked at first; of each no more is kept than that it is done.
    todo = [clip for clip in range(len(job.outputs)) if not (resume and _is_sampled(job, clip))]
    stage, previews = Stage(job, args), Previews(job)
    computed = [0] * len(job.outputs)
    try:
        for clip in todo:
            ends_turn = job.conditioned or clip == todo[-1]  # a conditioned clip's VAE comes next
            sampler = _Sampler(job, stage, clip, progress, previews, ends_turn=ends_turn)
            sampler.run(encoded, state_of(job, clip, job.device) if resume else None)
            computed[clip] = sampler.computed
            if job.conditioned:
                stage.close()
    finally:
        stage.close()
    return computed


def state_of(job: Job, clip: int, where: torch.device) -> RunState | None:
    """What is done of a clip, its tensors on `where`; None where nothing is. Raises StateError."""
    return read_state(state_path(job.outputs[clip]), job.asked(clip), where)


def _is_sampled(job: Job, clip: int) -> bool:
    state = state_of(job, clip, torch.device("cpu"))
    return state is not None and state.sampled


class _Sampler:
    """One clip's way through the pipeline."""

    def __init__(
        self,
        job: Job,
        stage: Stage,
        clip: int,
        progress: Progress,
        previews: Previews,
        *,
        ends_turn: bool,
    ) -> None:
        self._job, self._stage, self._clip, self._progress = job, stage, clip, progress
        self._previews, self._ends_turn = previews, ends_turn
        self._asked, self._path = job.asked(clip), state_path(job.outputs[clip])
        self._generator = torch.Generator().manual_seed(job.request.seed)
        self.computed = 0

    def run(self, encoded: Encoded, before: RunState | None) -> None:
        """Goes on after `before`, or from the noise."""
        job, device = self._job, self._job.device
        models = sampling_models(job, self._stage.models, conditioning_vae(job))
        pipe = build_pipeline(job.pipeline, job.parts, models)
        kept = None if before is None else before.kept
        steering = Steering(device, before.done if before else 0)
        if encoded.image is not None:
            steering.image_embeds = encoded.image.to(device, self._stage.dtype)
        steering.before_steps = self._before_steps(pipe, steering, kept)
        given = call_arguments(job, encoded, self._clip, device)
        # Embeddings are cast as the pipeline would; it holds no second copy of them then.
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            if name in given:
                given[name] = given[name].to(self._stage.dtype)
        if kept is not None:
            given["latents"] = kept["latents"]
            if job.pipeline == "WanVideoToVideoPipeline":
                del given["video"]  # it takes one of both
        try:
            with torch.no_grad():
                steered(pipe, steering)(
                    **given,
                    generator=self._generator,
                    output_type="latent",
                    callback_on_step_end=self._step_done,
                )
        finally:  # else pipeline and steering hold each other, and the scheduler's latents
            steering.before_steps = lambda: None

    def _before_steps(
        self, pipe: Any, steering: Steering, kept: Mapping[str, Any] | None
    ) -> Callable[[], None]:
        def change_places() -> None:
            if self._job.conditioned:
                leave(pipe.vae, self._job.device)
            self._stage.open()
            timesteps, boundary = pipe.scheduler.timesteps, boundary_of(self._job, pipe.scheduler)
            self._stage.expect_turns(timesteps, steering.skip, boundary, ends=self._ends_turn)
            if kept is not None:
                restore_scheduler(pipe.scheduler, kept["scheduler"])
                self._generator.set_state(kept["generator"])

        return change_places

    def _step_done(self, pipe: Any, step: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        if not bool(torch.isfinite(given["latents"]).all()):
            raise ModelError(
                f"step {step + 1} gave numbers that are none (NaN or infinite), of which no clip "
                "can be made: use a model in bfloat16, or other LoRAs, guidance or shift"
            )
        kept = {
            "latents": given["latents"],
            "scheduler": scheduler_state(pipe.scheduler),
            "generator": self._generator.get_state(),
        }
        done = RunState(step + 1, int(pipe.num_timesteps), kept)
        write_state(self._path, self._asked, done)
        self.computed += 1
        if self._previews.is_due(step + 1):
            self._previews.draw(self._clip, pipe.scheduler, given["latents"])
        self._progress("sample", step + 1, int(pipe.num_timesteps))
        return {}


def conditioning_vae(job: Job) -> Any:
    """The VAE for the steps: on the device where it encodes something first, else its config."""
    if not job.conditioned:
        return build_empty(job.parts.vae)
    vae = load_part(job.parts.vae)
    if job.tiled:
        vae.enable_tiling()
    return vae.to(job.device)


def sampling_models(job: Job, transformers: list[Any], vae: Any) -> dict[str, Any]:
    """The pipeline's models by argument name, but for the text encoder."""
    models = {"vae": vae, "scheduler": load_part(job.parts.scheduler)}
    models |= dict(zip(("transformer", "transformer_2"), transformers, strict=False))
    if job.parts.image_processor is not None:
        models["image_processor"] = load_part(job.parts.image_processor)
    return models
