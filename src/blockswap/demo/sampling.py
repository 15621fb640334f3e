"""Owns the sampling loop that turns a prompt and a seed into a clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgsError
from .latents import CELL, CHANNELS, unpack, with_coordinates
from .prompt import Prompt, encode_tokens, parse_prompt, tokens_of
from .shapes import ClipSize

# Told after every step: how many are done, of how many.
Progress = Callable[[int, int], None]

TIMESTEPS = 1000


@dataclass(frozen=True)
class SamplingSettings:
    """How a clip is sampled."""

    seed: int = 0
    steps: int = 16
    # One is a single pass a step; measured, two and more turn some balls and squares into another.
    guidance: float = 1.0
    # Above one, more of the steps are spent on high noise, where the place of the shape is settled.
    shift: float = 3.0
    size: ClipSize = field(default_factory=ClipSize)

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**64:  # what torch takes
            raise ArgsError(f"seed={self.seed} has more than 64 bits: give a smaller one")
        if self.steps < 1:
            raise ArgsError(f"steps must be at least 1, not {self.steps}")
        if self.steps > TIMESTEPS:
            raise ArgsError(f"steps must be at most {TIMESTEPS:,}: more change nothing to see")
        if self.size.frames < 1:
            raise ArgsError(f"frames must be at least 1, not {self.size.frames}")
        # A patch of the transformer is two cells high and wide.
        side = 2 * CELL
        if self.size.height % side or self.size.width % side:
            raise ArgsError(
                f"height and width must be multiples of {side}, "
                f"not {self.size.height} and {self.size.width}"
            )


def generate(
    transformer: Callable[..., Any],
    prompt: str | Prompt,
    settings: SamplingSettings | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Tensor:
    """Samples one clip: uint8 `[frames, height, width, 3]` on the CPU.

    `device` and `dtype` are those of the transformer's inputs. The transformer is only called, so
    it may just as well be one whose blocks are streamed.
    """
    settings = settings or SamplingSettings()
    wanted = parse_prompt(prompt) if isinstance(prompt, str) else prompt
    texts = [
        encode_tokens(tokens_of([words])).to(device=device, dtype=dtype)
        for words in (wanted, Prompt())
    ]
    with torch.inference_mode():
        latents = _noise(settings).to(device)
        scheduler = _scheduler(settings, device)
        for done, timestep in enumerate(scheduler.timesteps, start=1):
            clean = _guided(transformer, latents.to(dtype), timestep, texts, settings.guidance)
            # The model names the clean clip; the scheduler asks for the velocity towards noise.
            velocity = (latents - clean) / (timestep / TIMESTEPS)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            if progress is not None:
                progress(done, settings.steps)
        clip = unpack(latents)[0].clamp(0.0, 1.0)
        return (clip * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()


def _noise(settings: SamplingSettings) -> Tensor:
    """The starting noise, drawn on the CPU so that a seed means the same on every device.

    Returns float32 `[1, 48, frames, height / 4, width / 4]`.
    """
    size = settings.size
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (1, CHANNELS, size.frames, size.height // CELL, size.width // CELL)
    return torch.randn(shape, generator=generator)


def _scheduler(settings: SamplingSettings, device: torch.device | str) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(TIMESTEPS, shift=settings.shift)
    levels = [1.0 - step / settings.steps for step in range(settings.steps)]
    scheduler.set_timesteps(sigmas=levels, device=device)
    return scheduler


def _guided(
    transformer: Callable[..., Any],
    latents: Tensor,
    timestep: Tensor,
    texts: list[Tensor],
    guidance: float,
) -> Tensor:
    """The clean clip seen in noisy latents: float32 `[1, 48, frames, rows, columns]`."""

    noisy = with_coordinates(latents)

    def ask(text: Tensor) -> Tensor:
        (clean,) = transformer(
            hidden_states=noisy,
            timestep=timestep.expand(1),
            encoder_hidden_states=text,
            return_dict=False,
        )
        return torch.as_tensor(clean, dtype=torch.float32)

    with_words, without = texts
    if guidance == 1.0:
        return ask(with_words)
    base = ask(without)
    return base + guidance * (ask(with_words) - base)
