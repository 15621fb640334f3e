"""A run as one value: the model's parts, request, device, outputs; what each clip depends on."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..lora.file import files_of
from ..lora.request import Lora
from ..plan.inputs.machine import Machine
from .parts.components import Components, Part
from .request import VideoRequest

# Told what is being done: the phase, how many parts of it are done, of how many.
Progress = Callable[[str, int, int], None]


def silent(_phase: str, _done: int, _total: int) -> None:
    """The progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a run is made from. `machine` replaces the probed one; `outputs` has a path a clip."""

    parts: Components
    request: VideoRequest
    device: torch.device
    outputs: tuple[Path, ...]
    pipeline: str  # the class of diffusers that makes the clips
    tiled: bool = False
    machine: Machine | None = None
    fps: int = 16

    @property
    def on_host(self) -> bool:
        return self.device.type == "cpu"

    @property
    def portable(self) -> bool:
        """Whether torch composes RMS norms here, which takes memory that CUDA's kernel does not."""
        return self.device.type != "cuda"

    @property
    def conditioned(self) -> bool:
        """Whether the VAE encodes something before the first step."""
        return self.pipeline not in ("WanPipeline", "DemoPipeline")

    @property
    def timestep_per_token(self) -> bool:
        """Whether the pipeline gives the transformer a timestep for each token, as of TI2V 5B."""
        return self.parts.expand_timesteps and self.pipeline != "WanVideoToVideoPipeline"

    def image_encoder(self) -> Part | None:
        """What looks at the images before the first step; None where the model reads none of it.

        Raises CheckpointError where it is needed and not there.
        """
        config = self.parts.transformers[0].config
        if self.request.image is None or config.get("image_dim") is None:
            return None
        if self.parts.image_encoder is None or self.parts.image_processor is None:
            raise CheckpointError(
                f"{self.parts.folder} has a transformer that reads CLIP's features of the image, "
                "and no image encoder with its image processor: put both there, or give "
                "clip_vision_h"
            )
        return self.parts.image_encoder

    @property
    def image_bytes(self) -> int:
        """The images that the pipeline holds on the device until its end, in fp32."""
        request = self.request
        if self.pipeline != "WanImageToVideoPipeline":
            return 0
        images = sum(path is not None for path in (request.image, request.last_image))
        return images * 3 * 4 * request.width * request.height

    @property
    def sampled_frames(self) -> int:
        """Frames of the latents while they are sampled: VACE has one more of a reference."""
        reference = self.pipeline == "WanVACEPipeline" and self.request.image is not None
        return self.request.frames + (4 if reference else 0)

    def asked(self, clip: int) -> dict[str, str]:
        """All that the frames of a clip depend on, in words; budgets are not among it."""
        request, parts = self.request, self.parts
        told = {
            "prompt": request.prompts[clip],
            "negative": request.negative,
            "size": f"{request.width}x{request.height}",
            "frames": str(request.frames),
            "steps": str(request.steps),
            "guidance": repr(request.guidance),
            "seed": str(request.seed),
            "LoRAs": _loras(request.loras_for(len(parts.transformers))),
            "image": _digest(request.image),
            "last image": _digest(request.last_image),
            "video": _digest(request.video),
            "tiles": str(self.tiled),
            "device": self.device.type,
            "pipeline": self.pipeline,
            "boundary": str(parts.boundary_ratio),
        }
        models = {f"transformer {n}": part for n, part in enumerate(parts.transformers, 1)}
        models |= {"VAE": parts.vae, "scheduler": parts.scheduler}
        told |= {name: f"{part.path} {part.stamp}" for name, part in models.items()}
        return told | self.encoder_asked()

    def encoder_asked(self) -> dict[str, str]:
        """What a prompt's embedding depends on beside the prompt."""
        encoder, tokenizer = self.parts.text_encoder, self.parts.tokenizer
        return {
            "text encoder": f"{encoder.path} {encoder.stamp}",
            "tokenizer": f"{tokenizer.path} {tokenizer.stamp}",
            "encoded on": self.device.type,
            "libraries": " ".join(f"{n} {version(n)}" for n in ("torch", "diffusers")),
        }


def _loras(each: list[list[Lora]]) -> str:
    """Those of each transformer, in words."""
    return " | ".join(" ".join(map(_lora, own)) for own in each)


def _lora(lora: Lora) -> str:
    return " ".join((*map(_stamp, files_of(lora)), repr(float(lora.strength))))


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def _digest(path: Path | None) -> str:
    """Of what an image or a video holds; where it lies and when it was written changes nothing."""
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
