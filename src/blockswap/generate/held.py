"""What diffusers' pipelines and schedulers hold on the device beside a model's own forward."""

import sys
from math import prod
from typing import Any

from ..predict.recorder import GRANULARITY_BYTES
from ..turns.turn import rounded
from .costs import latent_shape
from .job import Job
from .request import TEXT_TOKENS

# Timesteps, a timestep, factors of latents: tensors of a few numbers, as the allocator rounds them.
_FEW_NUMBERS = 2 * GRANULARITY_BYTES


def inputs_bytes(job: Job) -> int:
    """Of images and videos, in fp32: what a pipeline keeps to its end.

    An image's pixels, its latents and their mask; a video; of VACE's mask what each latent pixel
    gets of it, a channel for each of its pixels.
    """
    frame = 4 * job.request.raw_frame_bytes // job.request.frames
    _, channels, frames, height, width = latent_shape(job, job.sampled_frames)
    if job.pipeline == "WanVideoToVideoPipeline":
        return job.request.frames * frame
    if job.pipeline == "WanVACEPipeline":
        reference = 0 if job.request.image is None else 1
        mask = 4 * job.parts.pixels_per_latent**2 * frames * height * width
        return (job.request.frames + reference) * frame + mask
    if job.pipeline != "WanImageToVideoPipeline":
        return 0
    in_channels = int(job.parts.transformers[0].config.get("in_channels", 16))
    kept = [(in_channels - channels) * frames]
    if job.timestep_per_token:
        kept = [channels, frames]  # latents of the image, and which of a frame are those
    return job.image_bytes + sum(rounded(4 * n * height * width) for n in kept)


def decode_inputs_bytes(job: Job) -> int:
    """What lies on the device of images and videos while the VAE decodes.

    A clip that follows a video is decoded from latents alone; VACE has its conditions, too.
    """
    if job.pipeline == "WanVideoToVideoPipeline":
        return 0
    if job.pipeline != "WanVACEPipeline":
        return inputs_bytes(job)
    _, channels, *size = latent_shape(job, job.sampled_frames)
    conditions = prod(size) * (2 * channels + job.parts.pixels_per_latent**2)
    return inputs_bytes(job) + 4 * conditions  # in fp32 at most


def embeddings_bytes(job: Job, item_bytes: int, config: Any) -> int:
    """Of a clip's texts, on the device from before its images are encoded to its last step."""
    return (1 + job.request.guided) * TEXT_TOKENS * int(config.text_dim) * item_bytes


def carried_bytes(job: Job, item_bytes: int, config: Any) -> int:
    """What lies on the device while a transformer of this config runs, beside its own tensors.

    Latents in fp32: the sample, the noise or a mask, the scheduler's history. In the transformer's
    dtype (`item_bytes` each): the first prediction of guidance, the prompt's other embedding, and
    what diffusers' loop still has of the step before.
    """
    shape, history = latent_shape(job, job.sampled_frames), _history(job)
    latent, in_channels = prod(shape), int(config.in_channels)
    beside = 1 if job.pipeline in ("WanPipeline", "WanImageToVideoPipeline") else 0
    sample = 0 if item_bytes == 4 and not job.conditioned else 1  # else it is the forward's input
    held = 4 * (sample + beside + history) * latent + inputs_bytes(job)
    held += item_bytes * _of_the_step_before(job, latent, latent // shape[1] * in_channels)
    if job.request.guided:
        held += item_bytes * latent + embeddings_bytes(job, item_bytes, config) // 2
    # An image embedder's norms compute in fp32, and may lie there in fewer bits.
    norms = 2 * rounded(4 * int(config.get("image_dim") or 0))
    return held + norms + _FEW_NUMBERS


def state_bytes(job: Job) -> int:
    """What writing the state takes on the host: its tensors there, flattened, and as a file."""
    return 3 * 4 * (1 + _history(job)) * prod(latent_shape(job, job.sampled_frames))


def _history(job: Job) -> int:
    """Latents that the scheduler keeps from one step to the next."""
    config = job.parts.scheduler.config
    return int(config["solver_order"]) + 1 if "solver_order" in config else 0


def _of_the_step_before(job: Job, prediction: int, given: int) -> int:
    """Numbers of the last step's predictions, and of its input.

    The loop asks for `locals()`, which keeps what it found until it is asked again; since Python
    3.13 it keeps nothing, and the guided prediction is the name's next value by then.
    """
    if sys.version_info >= (3, 13):
        return prediction
    return given + prediction * (2 if job.request.guided else 1)
