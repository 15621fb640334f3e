"""Phases of a generation, what is on the device in each, and latents carried between them."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ..layout.geometry import WanGeometry
from ..plan.inputs.workload import ComputeDtype, ForwardCost, Workload, latent_size
from .phase import PhaseCost
from .text_encoder import TextEncoderDtype, predict_text_encoder
from .transformer import predict_forward
from .vae import predict_vae, vae_of

# Latents in fp32 that a sampler holds at once: the sample, both predictions of guidance, their mix,
# and UniPC's history (two model outputs, the last sample), and one in the making.
SAMPLER_LATENTS = 8


@dataclass(frozen=True, slots=True)
class PhaseNeed:
    """What one phase has on the device at its peak."""

    name: str
    weight_bytes: int
    activation_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes


@dataclass(frozen=True, slots=True)
class Generation:
    """Costs of all phases of one clip. `carried_bytes`: latents and embeddings between them.

    `conditioning` is the VAE's encoding of what the clip is to follow (an image padded to the
    clip's length, a control video), None for text alone. Not counted: the CLIP image encoder of
    Wan2.1 I2V (0.6 G parameters), which is smaller than every other phase.
    """

    text_encoding: PhaseCost
    conditioning: PhaseCost | None
    denoising: ForwardCost
    decoding: PhaseCost
    carried_bytes: int
    text_streamed: bool = False

    def phases(self, transformer_bytes: int) -> Iterator[PhaseNeed]:
        """In order; `transformer_bytes` is what the plan keeps of the transformer on the device."""
        text, carried = self.text_encoding, self.carried_bytes
        weights = text.streamed_bytes if self.text_streamed else text.weight_bytes
        yield PhaseNeed("text encoding", weights, text.activation_bytes)
        if (vae := self.conditioning) is not None:
            yield PhaseNeed("conditioning", vae.weight_bytes, vae.activation_bytes + carried)
        activations = self.denoising.activation_bytes + carried
        yield PhaseNeed("denoising", transformer_bytes, activations)
        vae = self.decoding
        yield PhaseNeed("decoding", vae.weight_bytes, vae.activation_bytes + carried)

    def peak_bytes(self, transformer_bytes: int) -> int:
        """The most that any phase needs, without a margin."""
        return max(phase.peak_bytes for phase in self.phases(transformer_bytes))


@dataclass(frozen=True, slots=True)
class Companions:
    """How the models beside the transformer are run; `on_host` ones never come to the device.

    `text_encoder_streamed`: its blocks are streamed, as `open_text_encoder` does it.
    """

    text_encoder_dtype: TextEncoderDtype = "bfloat16"
    vae_dtype: ComputeDtype = "float32"
    vae_tiled: bool = False
    text_encoder_on_host: bool = False
    text_encoder_streamed: bool = False
    vae_on_host: bool = False


def predict_generation(
    geometry: WanGeometry, workload: Workload, companions: Companions | None = None
) -> Generation:
    """Predicts every phase. Raises ArgsError and ModelError as the phases' predictions do."""
    beside = companions or Companions()
    version = vae_of(geometry)
    tiled, dtype = beside.vae_tiled, beside.vae_dtype
    conditioned = geometry.in_channels != geometry.out_channels or geometry.num_vace_blocks > 0
    text = predict_text_encoder(tokens=workload.text_tokens, dtype=beside.text_encoder_dtype)
    return Generation(
        text_encoding=text,
        conditioning=predict_vae(workload, version=version, task="encode", tiled=tiled, dtype=dtype)
        if conditioned
        else None,
        denoising=predict_forward(geometry, workload),
        decoding=predict_vae(workload, version=version, tiled=tiled, dtype=dtype),
        carried_bytes=carried_bytes(geometry, workload, dtype=beside.text_encoder_dtype),
        text_streamed=beside.text_encoder_streamed,
    )


def carried_bytes(
    geometry: WanGeometry, workload: Workload, *, dtype: TextEncoderDtype = "bfloat16"
) -> int:
    """Latents and embeddings that a pipeline holds beside a forward; two prompts for guidance."""
    text = predict_text_encoder(tokens=workload.text_tokens, dtype=dtype)
    latent_bytes = 4 * geometry.out_channels * prod(latent_size(geometry, workload))
    return 2 * text.output_bytes + SAMPLER_LATENTS * latent_bytes
