"""The demo model as a pipeline of diffusers' kind: its words, pixels and noise behind Wan's parts.

The shipped transformer reads three words, packed pixels and where they lie, and names the clean
clip; a `WanPipeline` knows text embeddings, a VAE and a velocity. Each difference is one part here.
"""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import Tensor

from .latents import CELL, CHANNELS, unpack, with_coordinates
from .prompt import encode_tokens, parse_prompt, tokens_of
from .sampling import TIMESTEPS

_FRAMES = 4  # clips have 4n+1 frames, as Wan's, though each frame is a latent frame here


class DemoWords(torch.nn.Module):
    """Stands for the text encoder; it has no weights."""

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> "DemoWords":
        return cls()


class DemoPixels(torch.nn.Module):
    """Stands for the VAE: latents `[1, 48, frames, rows, columns]` are packed pixels."""

    dtype = torch.float32
    config = SimpleNamespace(
        z_dim=CHANNELS,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
        scale_factor_temporal=_FRAMES,
        scale_factor_spatial=CELL,
    )

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(1))  # says on which device it is

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> "DemoPixels":
        return cls()

    @classmethod
    def from_config(cls, _: Any) -> "DemoPixels":
        return cls()

    def enable_tiling(self) -> None:
        """Every cell is a tile already."""

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """A clip `[1, 3, frames, height, width]` of -1 to 1."""
        assert not return_dict
        clip = unpack(latents).clamp(0.0, 1.0).permute(0, 2, 1, 3, 4)
        return (clip * 2.0 - 1.0,)


class DemoNoise(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """The demo's noise levels, and its answers (the clean clip) as the velocity towards noise."""

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> "DemoNoise":
        return cls(TIMESTEPS, shift=3.0)

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **_: Any) -> None:
        levels = [1.0 - step / num_inference_steps for step in range(num_inference_steps)]
        super().set_timesteps(sigmas=levels, device=device)

    def step(self, clean: Tensor, timestep: Tensor, sample: Tensor, **how: Any) -> Any:
        velocity = (sample - clean.to(sample.dtype)) / (timestep / TIMESTEPS)
        return super().step(velocity, timestep, sample, **how)


class _Placed:
    """The transformer, told where each latent lies before it runs."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transformer, name)

    def __call__(self, hidden_states: Tensor, **given: Any) -> Any:
        return self.transformer(hidden_states=with_coordinates(hidden_states), **given)


class DemoPipeline(WanPipeline):  # type: ignore[misc]
    """Diffusers' text-to-video pipeline around the shipped model."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parameters of its base, by which it is known
        self,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        scheduler: Any,
        transformer: Any = None,
        transformer_2: Any = None,
        boundary_ratio: float | None = None,
        expand_timesteps: bool = False,
    ) -> None:
        placed = None if transformer is None else _Placed(transformer)
        beside = (transformer_2, boundary_ratio, expand_timesteps)
        super().__init__(tokenizer, text_encoder, vae, scheduler, placed, *beside)

    def encode_prompt(self, prompt: Any = None, negative_prompt: Any = None, **how: Any) -> Any:
        """Word vectors `[1, 3, 32]` of a prompt, and None; given embeddings are kept."""
        if how.get("prompt_embeds") is not None:
            return how["prompt_embeds"], how.get("negative_prompt_embeds")
        words = tokens_of([parse_prompt(prompt)])
        return encode_tokens(words).to(how.get("device") or "cpu"), None

    def prepare_latents(self, *shape: Any, **_: Any) -> Tensor:
        """Noise `[1, 48, frames, rows, columns]` in float32, or the latents that were given."""
        _, _, height, width, frames, dtype, device, generator, latents = shape
        if latents is not None:
            return torch.as_tensor(latents).to(device, dtype)
        sizes = (1, CHANNELS, frames, height // CELL, width // CELL)
        return torch.randn(sizes, generator=generator, dtype=dtype).to(device)
