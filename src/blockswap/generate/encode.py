"""The phase of the text encoder: which prompts are encoded now, and which are kept from before."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from ..selection import BlockSwapArgs
from ..swap.guards.open_swaps import is_swapped
from ..turns.turn import settle, turn_of, turn_of_encoder
from .costs import sight_cost
from .embeddings import keep_embedding, kept_embedding
from .host_pipelines import Steering, build_pipeline, steered
from .inputs import image_of, read_image
from .job import Job, Progress
from .parts.load import load_part
from .request import TEXT_TOKENS, VideoRequest


@dataclass(frozen=True, slots=True)
class Encoded:
    """Embeddings on the CPU, `[1, tokens, dim]` each: one a clip, and one of what to avoid.

    `encoded` counts those that the encoder made now. `image` is what CLIP saw in the image.
    """

    prompts: tuple[torch.Tensor, ...]
    negative: torch.Tensor | None
    image: torch.Tensor | None
    encoded: int


def question(job: Job, text: str) -> dict[str, str]:
    """All that an embedding depends on."""
    return {**job.encoder_asked(), "tokens": str(TEXT_TOKENS), "text": text}


def texts_of(job: Job) -> tuple[str, ...]:
    """The texts that the run needs, each once, in order."""
    negative = (job.request.negative,) if job.request.guided else ()
    return tuple(dict.fromkeys((*job.request.prompts, *negative)))


def to_encode(job: Job) -> tuple[str, ...]:
    """Those of them that are not kept."""
    return tuple(text for text in texts_of(job) if kept_embedding(question(job, text)) is None)


def encode(job: Job, args: BlockSwapArgs, progress: Progress) -> Encoded:
    """Embeds every text of the run; the encoder is read only where one of them is not kept."""
    known = {text: kept_embedding(question(job, text)) for text in texts_of(job)}
    missing = [text for text, embedding in known.items() if embedding is None]
    if missing:
        known |= _encode(job, args, missing, progress)
    found = {text: embedding for text, embedding in known.items() if embedding is not None}
    negative = found[job.request.negative] if job.request.guided else None
    prompts = tuple(found[prompt] for prompt in job.request.prompts)
    return Encoded(prompts, negative, _see_image(job), len(missing))


def _encode(
    job: Job, args: BlockSwapArgs, texts: list[str], progress: Progress
) -> dict[str, torch.Tensor]:
    parts, embeddings = job.parts, {}
    tokenizer = load_part(parts.tokenizer)
    with torch.no_grad(), _encoder(job, args) as encoder:
        if is_swapped(encoder):
            encoder.blockswap.ends_after(len(texts))
        models = {"tokenizer": tokenizer, "text_encoder": encoder}
        pipe = build_pipeline(job.pipeline, job.parts, models)
        steered(pipe, Steering(job.device))
        for done, text in enumerate(texts, 1):
            embedding, _ = pipe.encode_prompt(
                text,
                do_classifier_free_guidance=False,
                max_sequence_length=TEXT_TOKENS,
                device=job.device,
            )
            embeddings[text] = embedding.to("cpu")
            keep_embedding(question(job, text), embeddings[text])
            progress("encode", done, len(texts))
            del embedding
        del pipe, models, encoder
    return embeddings


def _encoder(job: Job, args: BlockSwapArgs) -> AbstractContextManager[Any]:
    """The text encoder on the device: its blocks come from its files as they are needed."""
    part = job.parts.text_encoder
    if part.config.get("weightless"):
        return turn_of(load_part(part), job.device, budget=None, activation_bytes=0)
    return turn_of_encoder(part.path, job.device, args)


def _images(request: VideoRequest) -> Any:
    """What the image encoder looks at, as the pipeline gives it."""
    if request.last_image is None:
        return image_of(request)
    return [image_of(request), read_image(request.last_image, request)]


def _see_image(job: Job) -> torch.Tensor | None:
    """What the image encoder of Wan 2.1's image models makes of the image, on the CPU."""
    part = job.image_encoder()
    if part is None or job.parts.image_processor is None:
        return None
    encoder: Any = load_part(part)
    models = {"image_encoder": encoder, "image_processor": load_part(job.parts.image_processor)}
    how: dict[str, Any] = {"budget": job.request.vram_budget}
    how |= {"activation_bytes": sight_cost(job, part).activation_bytes}
    with torch.no_grad(), turn_of(encoder, job.device, **how):
        pipe = steered(build_pipeline(job.pipeline, job.parts, models), Steering(job.device))
        seen: torch.Tensor = pipe.encode_image(_images(job.request), job.device).to("cpu")
        del pipe
    settle(job.device)
    return seen
