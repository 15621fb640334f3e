"""What is asked of a model that is predicted, be it one of Wan's or a class of diffusers."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from ..layout.geometry import WanGeometry
from ..plan.inputs.workload import (
    ComputeDtype,
    ForwardCost,
    KernelSet,
    Workload,
    has_token_timesteps,
    token_count,
)
from ..published import Family, resolved, sizes_of
from .generation import SAMPLER_LATENTS, Companions, Generation, carried_bytes, predict_generation
from .published_beside import predict_published_text, predict_published_vae
from .published_forward import predict_published_forward, predict_published_in_pieces
from .text_encoder import TextEncoderDtype
from .transformer import predict_forward, predict_in_pieces


@dataclass(frozen=True, slots=True)
class Wish:
    """A clip as a person names it; None is what the model is usually asked for."""

    size: tuple[int, int] | None = None
    frames: int | None = None
    batch: int | None = None
    dtype: ComputeDtype = "bfloat16"
    kernels: KernelSet = "cuda"


class Subject(Protocol):
    """A model of which the cost of a forward and of a whole generation is predicted."""

    @property
    def vae_dtype(self) -> ComputeDtype:
        """What its VAE runs in where nobody says."""

    def clip(self, wish: Wish) -> Workload:
        """The clip for this model. Raises ArgsError for one that it does not take."""

    def tokens(self, clip: Workload) -> int:
        """Tokens of one clip of the batch."""

    def forward(self, clip: Workload) -> ForwardCost:
        """Of one forward."""

    @property
    def cuts(self) -> bool:
        """Whether its blocks can run in pieces of tokens."""

    def in_pieces(self, clip: Workload, chunk_tokens: int) -> int:
        """Bytes of activations in pieces of at most so many tokens."""

    def carried_bytes(self, clip: Workload, dtype: TextEncoderDtype) -> int:
        """What a pipeline holds beside a forward: latents and embeddings."""

    def generation(self, clip: Workload, beside: Companions) -> Generation:
        """Of every phase of a run."""


@dataclass(frozen=True, slots=True)
class WanSubject:
    """A transformer of Wan's kind."""

    geometry: WanGeometry

    @property
    def vae_dtype(self) -> ComputeDtype:
        return "float32"

    def clip(self, wish: Wish) -> Workload:
        of_tokens = has_token_timesteps(self.geometry)
        size, frames = ((1280, 704), 121) if of_tokens else ((1280, 720), 81)
        width, height = wish.size or size
        return Workload(
            width,
            height,
            frames if wish.frames is None else wish.frames,
            batch=1 if wish.batch is None else wish.batch,
            dtype=wish.dtype,
            kernels=wish.kernels,
            per_token_timestep=of_tokens,
        )

    def tokens(self, clip: Workload) -> int:
        return token_count(self.geometry, clip)

    def forward(self, clip: Workload) -> ForwardCost:
        return predict_forward(self.geometry, clip)

    @property
    def cuts(self) -> bool:
        return True

    def in_pieces(self, clip: Workload, chunk_tokens: int) -> int:
        return predict_in_pieces(self.geometry, clip, chunk_tokens)

    def carried_bytes(self, clip: Workload, dtype: TextEncoderDtype) -> int:
        return carried_bytes(self.geometry, clip, dtype=dtype)

    def generation(self, clip: Workload, beside: Companions) -> Generation:
        return predict_generation(self.geometry, clip, beside)


@dataclass(frozen=True)
class PublishedSubject:
    """A class of diffusers whose inputs are recorded; `config` differs from its defaults."""

    family: Family
    config: Mapping[str, Any]

    @property
    def vae_dtype(self) -> ComputeDtype:
        return self.family.vae_dtype

    def clip(self, wish: Wish) -> Workload:
        family = self.family
        width, height = wish.size or family.size
        return Workload(
            width,
            height,
            family.frames if wish.frames is None else wish.frames,
            batch=family.batch if wish.batch is None else wish.batch,
            dtype=wish.dtype,
            kernels=wish.kernels,
            text_tokens=family.text_tokens,
            grid=family.grid,
        )

    def least_clip(self) -> Workload:
        """A clip as small as any, to see whether a forward can be followed."""
        grid = self.family.grid
        return self.clip(Wish((4 * grid.pixels, 4 * grid.pixels), grid.first))

    def tokens(self, clip: Workload) -> int:
        return sizes_of(self.family, self.config, clip)["tokens"]

    def forward(self, clip: Workload) -> ForwardCost:
        return predict_published_forward(self.family, self.config, clip)

    @property
    def cuts(self) -> bool:
        return self.family.in_pieces

    def in_pieces(self, clip: Workload, chunk_tokens: int) -> int:
        return predict_published_in_pieces(self.family, self.config, clip, chunk_tokens)

    def carried_bytes(self, clip: Workload, dtype: TextEncoderDtype) -> int:
        """Latents as Wan's samplers hold them, which none exceeds; inputs of the other prompt."""
        latents = resolved(self.family.latents, sizes_of(self.family, {}, clip))
        latent_bytes = 4 * prod(int(size) for size in latents.shape)
        return SAMPLER_LATENTS * latent_bytes + self.forward(clip).input_bytes

    def generation(self, clip: Workload, beside: Companions) -> Generation:
        dtype = beside.text_encoder_dtype
        return Generation(
            text_encoding=predict_published_text(self.family, dtype),
            conditioning=None,
            denoising=self.forward(clip),
            decoding=predict_published_vae(
                self.family, clip, tiled=beside.vae_tiled, dtype=beside.vae_dtype
            ),
            carried_bytes=self.carried_bytes(clip, dtype),
            text_streamed=beside.text_encoder_streamed,
        )
