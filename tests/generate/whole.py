"""A clip made by diffusers from whole models, and the same one made by us: what tests compare."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_pipelines import FROM_IMAGES, FROM_VIDEOS, WITH_CLIP

from blockswap.generate import VideoRequest, make_videos
from blockswap.generate.run import Made, prepare

PROMPT, NEGATIVE = "a red ball", "blurry"


def request_for(kind: str, folder: Path, **changes: Any) -> VideoRequest:
    """A small clip of that kind; its inputs are drawn into `folder`."""
    given: dict[str, Any] = {
        "prompts": (PROMPT,),
        "negative": NEGATIVE,
        "width": 64,
        "height": 64,
        "frames": 9,
        "steps": 4,
        "guidance": 4.0,
        "seed": 3,
    }
    if kind in (*FROM_IMAGES, "i2v-experts", "vace"):
        given["image"] = draw_image(folder / "start.png")
    if kind == "flf":
        given["last_image"] = draw_image(folder / "end.png", seed=4)
    if kind in FROM_VIDEOS:
        given["video"] = draw_video(folder / "start.mp4")
    return VideoRequest(**{**given, **changes})


def draw_image(path: Path, seed: int = 1) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def draw_video(path: Path) -> Path:
    from blockswap.generate.video import write_video

    frames = np.random.default_rng(2).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
    write_video(path, frames, width=64, height=64, fps=8)
    return path


def by_diffusers(kind: str, folder: Path, request: VideoRequest, device: Any) -> np.ndarray:
    """Frames of diffusers' pipeline with every model whole on the device, in memory of its own."""
    import diffusers

    name = "WanVACEPipeline" if kind == "vace" else "WanPipeline"
    more: dict[str, Any] = {}
    if kind in FROM_VIDEOS:
        name = "WanVideoToVideoPipeline"
    if kind in FROM_IMAGES:
        name = "WanImageToVideoPipeline"
        more = {"image_encoder": None, "image_processor": None} if kind not in WITH_CLIP else {}
    pipe = getattr(diffusers, name).from_pretrained(folder, **more)
    pipe.set_progress_bar_config(disable=True)
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
            model.to(device)
    if request.tiled:
        pipe.vae.enable_tiling()
    return called(pipe, kind, request)


def called(pipe: Any, kind: str, request: VideoRequest) -> np.ndarray:
    """Frames of a pipeline of diffusers of that kind, called for the request."""
    from blockswap.generate.inputs import read_frames

    given: dict[str, Any] = {}
    size = (request.width, request.height)
    if request.image is not None:
        image = Image.open(request.image).convert("RGB").resize(size)
        given |= {"reference_images": [image]} if kind == "vace" else {"image": image}
    if request.last_image is not None:
        given["last_image"] = Image.open(request.last_image).convert("RGB").resize(size)
    if request.video is not None:
        given["video"] = read_frames(request.video, width=size[0], height=size[1], most=9)
    if kind not in FROM_VIDEOS:
        given["num_frames"] = request.frames
    (frames,) = pipe(
        prompt=request.prompts[0],
        negative_prompt=request.negative,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator().manual_seed(request.seed),
        max_sequence_length=512,
        return_dict=False,
        **given,
    )
    return np.asarray(frames[0])


def by_us(
    folder: Any, request: VideoRequest, output: Path, device: Any, **how: Any
) -> tuple[list[np.ndarray], Made, Any]:
    """Frames of every clip, what was made, and the plan."""
    found: dict[int, np.ndarray] = {}
    machine = how.pop("machine", None)
    job, plan = prepare(folder, request, output, device=device, machine=machine)
    made = make_videos(job, plan, on_frames=found.__setitem__, **how)
    return [found[clip] for clip in sorted(found)], made, plan


def as_planned(made: Made, plan: Any) -> None:
    """The device's peak of every phase is what was said of it or at most 3 % less."""
    told = {phase.name: phase.device_bytes for phase in plan.phases}
    told["sample"] = max(told["sample"], told.get("condition", 0))
    for phase, peak in made.device_peaks.items():
        assert peak <= told[phase] <= peak * 1.03, f"{phase}: {peak:,} of {told}"
