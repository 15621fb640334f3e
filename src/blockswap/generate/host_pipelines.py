"""The seam to diffusers' Wan pipelines: which class makes a clip, and how one is steered.

A pipeline runs whole and is not rewritten. It is given prompt embeddings, is told which steps are
done by its own `interrupt` (it skips a step while that is true), and between its preparations and
its first step `Steering.before_steps` lets models change places on the device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..ambient import as_at_start
from ..errors import ArgsError, ModelError
from .components import Components, Part
from .request import VideoRequest

_STEERING = "blockswap_steering"
# Attributes of diffusers' schedulers that are their config, which the run does not change.
_SCHEDULER_CONFIG = ("_internal_dict",)
_ALIGNMENT = 64


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


def hosts() -> Any:
    """The diffusers module. Raises ModelError where it or transformers is not installed."""
    try:
        import diffusers
        import transformers  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"a whole video needs diffusers and transformers, and one could not be imported "
            f'({error}): pip install "wanvideo-blockswap[generate]"'
        ) from error
    return diffusers


def class_named(name: str) -> Any:
    """A class of diffusers, of transformers or of the shipped model. Raises ModelError."""
    diffusers = hosts()
    import transformers

    from ..demo import pipeline

    for home in (diffusers, transformers, pipeline):
        if hasattr(home, name):
            return getattr(home, name)
    raise ModelError(
        f"{name} is named by the model, and neither the installed diffusers nor transformers has "
        "it: install the versions that the model was saved with"
    )


def pipeline_name(parts: Components, request: VideoRequest) -> str:
    """Which of diffusers' classes makes the clip. Raises ArgsError where the model cannot."""
    if parts.pipeline is not None:
        if request.image is not None or request.video is not None:
            raise ArgsError("the shipped small model makes clips of three words alone: leave it")
        return parts.pipeline
    if parts.is_vace:
        return "WanVACEPipeline"
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
            return steering.image_embeds
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


def load_part(part: Part) -> Any:
    """A component from its folder, in host memory, in the dtypes of its files; nothing is fetched.

    The VAE computes in fp32, as diffusers loads it.
    """
    kind = class_named(part.class_name)
    how: dict[str, Any] = {"local_files_only": True}
    loaded = kind.from_pretrained(part.folder, **how)
    if not isinstance(loaded, torch.nn.Module):
        return loaded
    for tensor in [*loaded.parameters(), *loaded.buffers()]:
        # A view of the mapped file lies at any offset, and kernels of the CPU round by alignment:
        # weights get memory of their own, as streamed ones have.
        if tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()
    return loaded.eval()


@as_at_start()
def build_empty(part: Part) -> torch.nn.Module:
    """A component on the meta device, of its config alone: nothing is read."""
    kind = class_named(part.class_name)
    with torch.device("meta"):
        if hasattr(kind, "from_config"):
            model = kind.from_config(dict(part.config))
        else:
            model = kind(kind.config_class.from_dict(dict(part.config)))
    built: torch.nn.Module = model.eval()
    return built


def scheduler_state(scheduler: Any) -> dict[str, Any]:
    """All that a scheduler has changed and may change again while it runs."""
    return {k: v for k, v in vars(scheduler).items() if k not in _SCHEDULER_CONFIG}


def restore_scheduler(scheduler: Any, state: Mapping[str, Any]) -> None:
    """Puts the scheduler where `scheduler_state` found it."""
    vars(scheduler).update(state)
