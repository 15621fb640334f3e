"""What the models beside the transformer need on the device, followed on meta tensors."""

from collections.abc import Callable
from dataclasses import asdict, fields, replace
from math import prod
from typing import Any

import torch

from ..errors import ModelError
from ..predict.cache import counts, library_versions, remembered
from ..predict.module import record_call
from ..predict.phase import PhaseCost
from ..predict.recorder import GRANULARITY_BYTES, Recorder
from ..predict.text_encoder import TextEncoderGeometry, predict_text_encoder
from ..predict.vae_chunks import LikeChunks, record_vae
from ..turns.turn import device_bytes
from .job import Job
from .parts.components import Part
from .parts.load import build_empty
from .request import TEXT_TOKENS

_WAY = 3  # how costs are followed; counted up when that changes what is alive


def text_cost(job: Job) -> PhaseCost:
    """Encoding one prompt. Where the encoder cannot be followed, the formula for its sizes."""
    if job.parts.text_encoder.config.get("weightless"):
        return PhaseCost(0, 0, 0)
    return _kept(job, job.parts.text_encoder, "text", lambda: _follow_text(job))


def _kept(job: Job, part: Part, task: str, follow: Callable[[], PhaseCost]) -> PhaseCost:
    """What was found before for the same part, clip and libraries; else followed now."""
    question = {
        "kind": "generate",
        "way": _WAY,
        "task": task,
        "config": {name: repr(value) for name, value in sorted(part.config.items())},
        "latents": list(latent_shape(job)),
        "portable": job.portable,
        "on_host": job.on_host,
        "libraries": library_versions("torch", "diffusers", "transformers"),
    }
    cost: PhaseCost = remembered(
        question,
        lambda: asdict(follow()),
        lambda kept: PhaseCost(**counts(kept, (field.name for field in fields(PhaseCost)))),
    )
    return cost


def _follow_text(job: Job) -> PhaseCost:
    part = job.parts.text_encoder
    dtype = stated_dtype(part)
    encoder = build_empty(part).to(dtype)
    ids = torch.zeros(1, TEXT_TOKENS, dtype=torch.int64, device="meta")
    # The square one that the encoder makes of a row of padding, which it would have to look at.
    mask = torch.ones(1, 1, TEXT_TOKENS, TEXT_TOKENS, dtype=torch.bool, device="meta")
    kernels = "portable" if job.portable else "cuda"
    weights = device_bytes(encoder)
    try:
        cost = record_call(
            Recorder([*encoder.parameters(), *encoder.buffers()], on_host=job.on_host),
            lambda ids, _, mask: encoder(ids, mask).last_hidden_state,
            ((ids, torch.ones_like(ids), mask), {}),
            label=part.class_name,
            kernels=kernels,  # type: ignore[arg-type]
        )
    except ModelError:
        return _by_formula(part, dtype)
    return PhaseCost(weights, cost.activation_bytes, cost.output_bytes, cost.flops)


def sight_cost(job: Job, part: Part) -> PhaseCost:
    """CLIP's encoder looking at the images of the request."""
    images = 1 if job.request.last_image is None else 2
    return _kept(job, part, f"see {images}", lambda: _follow_sight(job, part, images))


def _follow_sight(job: Job, part: Part, images: int) -> PhaseCost:
    encoder: Any = build_empty(part).to(stated_dtype(part))
    side = int(encoder.config.image_size)
    cost = record_call(
        Recorder([*encoder.parameters(), *encoder.buffers()], on_host=job.on_host),
        lambda pixels: encoder(pixels, output_hidden_states=True).hidden_states[-2],
        ((torch.empty(images, 3, side, side, device="meta"),), {}),
        label=part.class_name,
        kernels="portable" if job.portable else "cuda",
    )
    return PhaseCost(device_bytes(encoder), cost.activation_bytes, cost.output_bytes, cost.flops)


def _by_formula(part: Part, dtype: torch.dtype) -> PhaseCost:
    config = part.config
    geometry = TextEncoderGeometry(
        vocabulary=int(config["vocab_size"]),
        dim=int(config["d_model"]),
        attention_dim=int(config["d_kv"]) * int(config["num_heads"]),
        ffn_dim=int(config["d_ff"]),
        heads=int(config["num_heads"]),
        layers=int(config["num_layers"]),
        buckets=int(config.get("relative_attention_num_buckets", 32)),
    )
    name: Any = str(dtype).removeprefix("torch.")
    return predict_text_encoder(tokens=TEXT_TOKENS, dtype=name, geometry=geometry)


def stated_dtype(part: Part) -> torch.dtype:
    stated = str(part.config.get("dtype") or part.config.get("torch_dtype") or "float32")
    found = getattr(torch, stated, torch.float32)
    return found if isinstance(found, torch.dtype) else torch.float32


def latent_shape(job: Job, frames: int | None = None) -> tuple[int, int, int, int, int]:
    """Of one clip, or of that many frames: `[1, channels, frames, height, width]`."""
    request, config = job.request, job.parts.vae.config
    scale = job.parts.pixels_per_latent
    frames = ((frames or request.frames) - 1) // int(config.get("scale_factor_temporal") or 4) + 1
    channels = int(config.get("z_dim", 16))
    return (1, channels, frames, request.height // scale, request.width // scale)


def decode_cost(job: Job, *, tiled: bool) -> PhaseCost:
    """Decoding one clip's latents into frames of 0 to 1, as the pipelines do it."""
    task = f"decode, tiled {tiled}"
    return _kept(job, job.parts.vae, task, lambda: _follow_decoding(job, tiled=tiled))


def _follow_decoding(job: Job, *, tiled: bool) -> PhaseCost:
    vae: Any = build_empty(job.parts.vae)
    recorder, weights = Recorder(vae.parameters(), on_host=job.on_host), device_bytes(vae)
    if isinstance(getattr(vae, "decoder", None), torch.nn.Module):
        vae.decoder = LikeChunks(vae.decoder, recorder)
    vae.blend_v = vae.blend_h = lambda _, tile, __: tile
    if tiled:
        vae.enable_tiling()
    from diffusers.video_processor import VideoProcessor

    processor = VideoProcessor(vae_scale_factor=job.parts.pixels_per_latent)
    shape = latent_shape(job)

    def work(noise: torch.Tensor, _timesteps: torch.Tensor) -> torch.Tensor:
        latents = torch.empty(shape, dtype=torch.float32, device="meta")
        mean = torch.empty(1, shape[1], 1, 1, 1, dtype=vae.dtype, device="meta")
        spread = torch.empty_like(mean)
        latents = latents / spread + mean
        video = vae.decode(latents, return_dict=False)[0]
        frames: torch.Tensor = processor.postprocess(video[0].permute(1, 0, 2, 3), "pt")
        return frames

    # The noise, or a mask, as large as the latents; and the timesteps.
    held = torch.empty(shape, device="meta"), torch.empty(job.request.steps, device="meta")
    cost = record_call(recorder, work, (held, {}), label="the VAE")
    return PhaseCost(weights, cost.activation_bytes, cost.output_bytes, cost.flops)


def condition_cost(job: Job, *, tiled: bool) -> PhaseCost:
    """Encoding what the clip starts from or follows; a first frame alone where it is one frame."""
    _, _, frames, height, width = latent_shape(job)
    if job.timestep_per_token:
        frames = 1
    size = (frames, height, width)
    # VACE holds the control video, its mask (as given, and rounded), the other half of the video
    # that the mask parts, and the reference, all in fp32.
    clips = 4 * 4 * job.request.raw_frame_bytes if job.parts.is_vace else 0
    few = 4 * GRANULARITY_BYTES  # factors of latents, timesteps, the scale of conditions
    held = clips + clips // (4 * job.request.frames) + job.image_bytes + few
    if job.pipeline == "WanImageToVideoPipeline":
        held += 4 * prod(latent_shape(job))  # the noise

    def follow() -> PhaseCost:
        vae = build_empty(job.parts.vae)
        cost, activations = record_vae(vae, "encode", size, tiled=tiled, on_host=job.on_host), 0
        if job.timestep_per_token and vae.dtype == torch.float32:
            activations = -job.image_bytes  # it is what is encoded
        activations += cost.activation_bytes
        return replace(cost, activation_bytes=activations, weight_bytes=device_bytes(vae))

    cost = _kept(job, job.parts.vae, f"encode {frames}, tiled {tiled}", follow)
    return replace(cost, activation_bytes=cost.activation_bytes + held)
