"""A picture of the clip while it is sampled: its first frame, by the model's VAE on the host."""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..report.output import write_whole
from .costs import latent_shape
from .job import Job
from .parts.load import load_part


def preview_path(output: Path) -> Path:
    """Where the pictures of the clip that becomes `output` are put, each over the one before."""
    return output.with_name(output.stem + ".preview.png")


class Previews:
    """Draws a picture every few steps of the request. The VAE is read when the first one is due.

    A Wan VAE decodes causally, so the first latent frame alone gives the first frame of the clip.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._vae: Any = None

    def is_due(self, step: int) -> bool:
        """Whether one is to be drawn after `step` steps."""
        every = self._job.request.preview_every
        return every > 0 and step % every == 0

    def draw(self, clip: int, scheduler: Any, latents: torch.Tensor) -> Path:
        """Writes what the clip is about to be, as far as the scheduler keeps that; else what it is.

        Raises OutputError.
        """
        first = latents.shape[2] - latent_shape(self._job)[2]  # VACE has a reference before it
        seen = _expected(scheduler, latents)[:, :, first : first + 1]
        seen = seen.detach().to("cpu", torch.float32)
        if self._vae is None:
            self._vae = load_part(self._job.parts.vae)
            if self._job.tiled:
                self._vae.enable_tiling()
        config = self._vae.config
        mean, spread = (
            torch.tensor(values).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        # As the pipelines scale latents, operation by operation, for the same bits.
        seen = seen / (1.0 / spread) + mean
        with torch.no_grad():
            (frames,) = self._vae.decode(seen, return_dict=False)
        path = preview_path(self._job.outputs[clip])
        _write(path, frames[0, :, 0])
        return path


def _expected(scheduler: Any, latents: torch.Tensor) -> torch.Tensor:
    """The clean latents that a multistep scheduler predicted last; else the noisy ones."""
    kept = getattr(scheduler, "model_outputs", None) or [None]
    clean = getattr(scheduler.config, "predict_x0", False)
    found = kept[-1]
    return found if clean and isinstance(found, torch.Tensor) else latents


def _write(path: Path, frame: torch.Tensor) -> None:
    from PIL import Image

    pixels = (frame / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    picture = Image.fromarray((pixels * 255).astype(np.uint8))

    def encode(file: BinaryIO) -> None:
        picture.save(file, format="PNG")

    write_whole(path, encode)
