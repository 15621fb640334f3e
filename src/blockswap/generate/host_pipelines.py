"""The seam to diffusers' Wan pipelines: which class makes a clip, and how one is steered.

A pipeline runs whole and is not rewritten. It is given prompt embeddings, is told which steps are
done by its own `interrupt` (it skips a step while that is true), and between its preparations and
its first step `Steering.before_steps` lets models change places on the device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import ArgsError
from .parts.components import Components
from .parts.load import class_named
from .request import VideoRequest

_STEERING = "blockswap_steering"
# Attributes of diffusers' schedulers that are their config, which the run does not change.
_SCHEDULER_CONFIG = ("_internal_dict",)


@dataclass
class Steering:
    """What a steered pipeline is told. `skip` steps are passed over; then `before_steps` is called
    once, before the first step that is computed or after the last one that is skipped."""

    device: torch.device
    skip: int = 0
    before_steps: Callable[[], None] = field(default=lambda: None)
    image_embeds: torch.Tensor | None = None
    asked: int = 0

    def skips(self) -> bool:
        """Asked by the pipeline at the beginning of each step."""
        self.asked += 1
        if self.asked <= self.skip:
            return True
        if self.asked == self.skip + 1:
            self.before_steps()
        return False


def pipeline_name(parts: Components, request: VideoRequest) -> str:
    """Which of diffusers' classes makes the clip. Raises ArgsError where the model cannot."""
    if parts.pipeline is not None:
        if request.image is not None or request.video is not None:
            raise ArgsError("the shipped small model makes clips of three words alone: leave it")
        return parts.pipeline
    if parts.is_vace:
        return "WanVACEPipeline"
    if request.video is not None and request.image is not None:
        raise ArgsError(
            "an image and a video were given, and this model starts from one of them alone: leave "
            "the other out (VACE takes both)"
        )
    if request.video is not None:
        if parts.reads_image or len(parts.transformers) > 1:
            raise ArgsError(
                "a video to start from was given, and this model takes none: use a text-to-video "
                "model of one transformer, or VACE"
            )
        return "WanVideoToVideoPipeline"
    takes_image = parts.reads_image or parts.expand_timesteps
    if request.image is not None and not takes_image:
        raise ArgsError("an image was given, and this model makes videos of text alone: leave it")
    if request.image is None and parts.reads_image:
        raise ArgsError("this model starts from an image, and none was given: add --image")
    return "WanImageToVideoPipeline" if request.image is not None else "WanPipeline"


def refuse_last_image(parts: Components, request: VideoRequest) -> None:
    """Raises ArgsError where an image to end with is needed, or would not be looked at."""
    transformer = parts.transformers[0].config
    both = transformer.get("pos_embed_seq_len") is not None
    if request.last_image is None:
        if both:
            raise ArgsError(
                "this model goes from a first image to a last one, and no last one was given: add "
                "--last-image"
            )
        return
    one = transformer.get("image_dim") is not None and not both
    if not parts.reads_image or one or parts.is_vace:
        raise ArgsError(
            "an image to end with was given, and this model reads none: leave --last-image, or use "
            "Wan 2.1 FLF2V or Wan 2.2 I2V"
        )


def refuse_no_step(name: str, request: VideoRequest) -> None:
    """Raises ArgsError where a video that is followed leaves the pipeline without a step.

    It begins with noise of its `strength` on the video, and takes that share of the steps.
    """
    import inspect

    asked = inspect.signature(class_named(name).__call__).parameters.get("strength")
    if request.video is not None and asked is not None and int(request.steps * asked.default) < 1:
        raise ArgsError(
            f"steps={request.steps} was asked, and a clip that follows a video takes "
            f"{asked.default:g} of them, which is none: ask for 2 or more"
        )


def steered(pipe: Any, steering: Steering) -> Any:
    """The same pipeline object, asking `steering` from now on."""
    kind = type(pipe)
    if _STEERING not in vars(pipe):
        pipe.__class__ = type(kind.__name__, (_Steered, kind), {"__module__": kind.__module__})
    vars(pipe)[_STEERING] = steering
    return pipe


class _Steered:
    """What a steered pipeline answers otherwise than its class does."""

    @property
    def _execution_device(self) -> torch.device:
        steering: Steering = vars(self)[_STEERING]
        return steering.device

    @property
    def interrupt(self) -> bool:
        steering: Steering = vars(self)[_STEERING]
        return steering.skips()

    def encode_image(self, image: Any, device: Any = None) -> Any:
        steering: Steering = vars(self)[_STEERING]
        if steering.image_embeds is not None:
            # Asked for once: the pipeline copies it, and nobody holds this one any more.
            given, steering.image_embeds = steering.image_embeds, None
            return given
        inherited: Any = super()
        return inherited.encode_image(image, device)


def build_pipeline(name: str, parts: Components, models: Mapping[str, Any]) -> Any:
    """Diffusers' pipeline of that class with `models` by argument name, the others None."""
    import inspect

    kind = class_named(name)
    known = set(inspect.signature(kind.__init__).parameters) - {"self"}
    given: dict[str, Any] = {key: None for key in known if key not in models}
    given |= {key: value for key, value in models.items() if key in known}
    if "boundary_ratio" in known:
        given["boundary_ratio"] = parts.boundary_ratio
    if "expand_timesteps" in known:
        given["expand_timesteps"] = parts.expand_timesteps
    pipe = kind(**given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduler_state(scheduler: Any) -> dict[str, Any]:
    """All that a scheduler has changed and may change again while it runs."""
    return {k: v for k, v in vars(scheduler).items() if k not in _SCHEDULER_CONFIG}


def restore_scheduler(scheduler: Any, state: Mapping[str, Any]) -> None:
    """Puts the scheduler where `scheduler_state` found it."""
    vars(scheduler).update(state)
