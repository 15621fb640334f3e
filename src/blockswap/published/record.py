"""What is recorded of a published model: one value each for it, its class and what runs beside it.

A size is a whole number, or words that `sizes` reads: "tokens", "text+audio", "in_channels*4".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..plan.inputs.workload import ComputeDtype, Grid

Size = int | str


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor of a pipeline's call. `dtype` "" is what the model computes in.

    `filled`: what it holds, where the forward asks for values.
    """

    shape: tuple[Size, ...]
    dtype: str = ""
    filled: Literal["ones", "zeros"] | None = None


@dataclass(frozen=True, slots=True)
class Each:
    """A list with the same for each sample of the batch."""

    of: Any


@dataclass(frozen=True, slots=True)
class Where:
    """An argument that is given where `figure` of the model's config says so, and left out else."""

    figure: str
    of: Any


@dataclass(frozen=True, slots=True)
class Part:
    """A class and what of its configuration differs from the class's defaults."""

    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoder:
    """A text encoder of transformers: it reads so many tokens, padding and template included."""

    part: Part
    tokens: int


@dataclass(frozen=True, slots=True)
class Soundtrack:
    """Latents of sound beside those of frames: so many a second and channel."""

    frames_per_second: int
    per_second: int
    channels: int = 1


@dataclass(frozen=True, slots=True)
class Family:
    """What a pipeline of diffusers gives a transformer of class `class_name`.

    `grid`: which clips it takes; `size` and `frames`: the clip that is meant where nobody says.
    A latent is `vae_pixels` wide, a token `patch` latents. `arguments` are those of one forward,
    `latents` what the VAE decodes. `batch` is 2 where both halves of guidance go through one
    forward. `in_pieces`: whether its blocks can run in pieces of tokens.
    """

    class_name: str
    grid: Grid
    size: tuple[int, int]
    frames: int
    vae_pixels: int
    patch: int
    text_tokens: int
    arguments: Mapping[str, Any]
    latents: Made
    vae: Part
    encoders: tuple[Encoder, ...]
    soundtrack: Soundtrack | None = None
    batch: int = 1
    in_pieces: bool = False
    vae_dtype: ComputeDtype = "bfloat16"


@dataclass(frozen=True, slots=True)
class Published:
    """A model by the name that `plan` and `synth` know it by."""

    name: str
    family: Family
    config: Mapping[str, Any] = field(default_factory=dict)
