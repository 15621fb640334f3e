"""What was asked of a run and changes nothing in it, in sentences: none is passed over unsaid."""

from collections.abc import Iterator

from ..lora.request import as_loras
from ..units import format_bytes
from .inputs import has_more_frames, is_transparent
from .job import Job
from .parts.load import build_empty


def idle_sentences(job: Job) -> tuple[str, ...]:
    """One for each option of the request that this run does not use, or uses in part."""
    told = (_budget, _negative, _loras, _previews, _tiles, _pieces, _inputs)
    return tuple(sentence for tell in told for sentence in tell(job))


def _budget(job: Job) -> Iterator[str]:
    if job.on_host and job.request.vram_budget is not None:
        yield (
            f"{format_bytes(job.request.vram_budget)} of VRAM were named and nothing is limited by "
            "it: on the CPU all counts as host memory, which --ram limits"
        )


def _negative(job: Job) -> Iterator[str]:
    if job.request.negative and not job.request.guided:
        yield (
            f"the negative prompt is not read: with a guidance of {job.request.guidance:g} a step "
            "runs the model on the prompt alone (above 1 it would)"
        )


def _loras(job: Job) -> Iterator[str]:
    request = job.request
    for lora in as_loras((*request.loras, *request.loras_high, *request.loras_low)):
        if lora.strength == 0:
            yield (
                f"{lora.path} changes nothing at a strength of 0: leave it out, or give another one"
            )


def _previews(job: Job) -> Iterator[str]:
    every, steps = job.request.preview_every, job.request.steps
    if every >= steps:
        yield (
            f"a picture every {every} steps shows nothing early: the clip is decoded after its "
            f"last step, which is step {steps}; ask for a smaller number"
        )


def _tiles(job: Job) -> Iterator[str]:
    request = job.request
    if not request.tiled:
        return
    vae = build_empty(job.parts.vae)
    sides = [getattr(vae, f"tile_sample_min_{side}", None) for side in ("height", "width")]
    if sides[0] is None or sides[1] is None:
        yield "tiles change nothing: what decodes this model's clips has none"
    elif request.height <= sides[0] and request.width <= sides[1]:
        yield (
            f"tiles change nothing: {request.width}x{request.height} is no larger than one, "
            f"{sides[1]}x{sides[0]}"
        )


def _pieces(job: Job) -> Iterator[str]:
    asked = job.request.chunk_tokens
    if not asked:
        return
    if job.parts.pipeline is not None:
        return  # how many tokens it has is no clip's of Wan; the plan says what is cut
    patch = job.parts.transformers[0].config.get("patch_size") or (1, 2, 2)
    side = job.parts.pixels_per_latent * int(patch[-1])
    latents = (job.sampled_frames - 1) // 4 + 1
    tokens = latents * (job.request.height // side) * (job.request.width // side)
    if tokens <= asked:
        yield (
            f"pieces of {asked:,} tokens change nothing: a forward of this clip has {tokens:,}, "
            "and blocks run whole"
        )


def _inputs(job: Job) -> Iterator[str]:
    request = job.request
    if request.video is not None and has_more_frames(request.video, request.frames):
        yield f"{request.video} is longer: its first {request.frames} frames are followed"
    for path in (request.image, request.last_image):
        if path is not None and is_transparent(path):
            yield f"{path} has transparent parts: they are read in the colours that lie beneath"
