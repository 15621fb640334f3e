"""Owns `blockswap generate`: a whole video from a prompt, planned first, in the memory named."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ArgsError
from ..units import format_bytes, format_seconds, parse_bytes
from .console import new_console, new_progress, new_table

DOES_NOT_FIT = 1  # the exit code where a phase has no room; a refusal has 2


def generate(  # noqa: PLR0913, PLR0917 - the options of a command
    model: Annotated[
        list[str],
        typer.Option(
            metavar="FOLDER|FILE|tiny",
            help="A folder, or the files of its parts (once for each), or tiny.",
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="What the clip shows.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A text file with a prompt a line: a clip for each.")
    ] = None,
    negative: Annotated[str, typer.Option(help="What it should not look like.")] = "",
    image: Annotated[Path | None, typer.Option(help="The image that it starts from.")] = None,
    last_image: Annotated[Path | None, typer.Option(help="The image that it ends with.")] = None,
    video: Annotated[Path | None, typer.Option(help="The video that it follows.")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:STRENGTH]", help="A LoRA; may be given more than once."),
    ] = None,
    lora_high: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:STRENGTH]", help="A LoRA of the expert of high noise alone."),
    ] = None,
    lora_low: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:STRENGTH]", help="A LoRA of the expert of low noise alone."),
    ] = None,
    lora_partial: Annotated[
        bool,
        typer.Option(
            "--lora-partial", help="Leave out what LoRAs have for layers that no model here has."
        ),
    ] = False,
    module: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A module that goes onto the transformer, as VACE's."),
    ] = None,
    high_noise: Annotated[
        Path | None, typer.Option(help="Wan 2.2's expert of high noise, where no name says it.")
    ] = None,
    low_noise: Annotated[
        Path | None, typer.Option(help="Wan 2.2's expert of low noise, where no name says it.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The tokenizer's folder, where no file carries it.")
    ] = None,
    vram: Annotated[str | None, typer.Option(help="Bytes to use on the device, 8GiB.")] = None,
    ram: Annotated[str | None, typer.Option(help="Bytes of host memory to use, 12GiB.")] = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="The clip's size.")] = "832x480",
    frames: Annotated[int, typer.Option(help="The clip's frames, 4n+1.")] = 81,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 30,
    guidance: Annotated[float, typer.Option(help="How closely to follow the prompt.")] = 5.0,
    shift: Annotated[float | None, typer.Option(help="The scheduler's flow shift.")] = None,
    chunk_tokens: Annotated[
        int | None, typer.Option(help="Most tokens that a part of a block runs at once; 0: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another clip.")] = 0,
    tiled: Annotated[
        bool | None,
        typer.Option("--tiled/--whole", help="Decode in tiles; by default where it must be."),
    ] = None,
    preview: Annotated[
        int, typer.Option(metavar="STEPS", help="Draw the first frame every so many steps; 0: no.")
    ] = 0,
    output: Annotated[Path, typer.Option(help="The video, an MP4.")] = Path("out.mp4"),
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run.")] = False,
    device: Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, xpu ...")] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what it will take, and stop.")] = False,
) -> None:
    """Make a video within the memory you name: it is planned first, phase by phase.

    What is done is on the disk after every step; --resume goes on with it, to the same frames.
    """
    from ..generate.parts.find import ModelFiles
    from ..generate.parts.tiny import TINY
    from ..generate.request import VideoRequest, read_prompts
    from ..lora.request import parse_loras

    if (prompt is None) == (prompts is None):
        raise ArgsError("give one of --prompt and --prompts: what shall the clip show?")
    texts = read_prompts(prompts) if prompts is not None else (prompt or "",)
    if "" in model:
        raise ArgsError('--model "" names nothing: give a folder, a file of a part, or tiny')
    loras, high, low = parse_loras(lora, lora_high, lora_low, partial=lora_partial)
    width, height = _size(size)
    request = VideoRequest(
        texts,
        negative,
        width=width,
        height=height,
        frames=frames,
        steps=steps,
        guidance=guidance,
        seed=seed,
        image=image,
        video=video,
        vram_budget=None if vram is None else parse_bytes(vram),
        ram_budget=None if ram is None else parse_bytes(ram),
        tiled=tiled,
        loras=loras,
        loras_high=high,
        loras_low=low,
        chunk_tokens=chunk_tokens,
        preview_every=preview,
        last_image=last_image,
    )
    files: Any = ModelFiles(
        tuple(map(Path, model)), high_noise, low_noise, tokenizer, shift, tuple(module or ())
    )
    if model == [TINY]:
        if files != ModelFiles((Path(TINY),)):
            raise ArgsError(
                "files or a shift were given beside tiny, which is whole and has its own: leave "
                "them out"
            )
        files = TINY
    _run(files, request, output, device, resume=resume, dry_run=dry_run)


def _run(
    model: Any, request: Any, output: Path, device: str | None, *, resume: bool, dry_run: bool
) -> None:
    from ..generate.run import make_videos, prepare, unfinished
    from ..stream.device import best_device

    console = new_console()
    where = best_device() if device is None else device
    job, plan = prepare(model, request, output, device=where)
    _print_plan(console, plan)
    if not plan.fits:
        raise typer.Exit(DOES_NOT_FIT)
    if dry_run:
        return
    if resume and not unfinished(job):
        console.print(
            f"nothing to go on with: no state of an unfinished run lies beside {job.outputs[0]}, "
            "and the clip is made from its beginning",
            soft_wrap=True,
        )
    with new_progress(console) as bar:
        tasks: dict[str, Any] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total, note="")
            bar.update(tasks[phase], completed=done, total=total, note=f"{done} of {total}")

        made = make_videos(job, plan, resume=resume, progress=progress)
    for phase, nbytes in made.device_peaks.items():
        console.print(f"{phase}: {format_bytes(nbytes)} measured on the device", soft_wrap=True)
    if made.host_peak_bytes is not None:
        host, told = format_bytes(made.host_peak_bytes), format_bytes(plan.host_peak_bytes)
        console.print(f"host memory: {host} measured, {told} planned", soft_wrap=True)
    for clip in made.clips:
        console.print(f"{clip.path}: {clip.steps_computed} steps computed", soft_wrap=True)


def _print_plan(console: Any, plan: Any) -> None:
    console.print(plan.verdict, style="bold", soft_wrap=True)
    table = new_table("phase", "on the device", "host memory", "read", "time")
    for phase in plan.phases:
        table.add_row(
            phase.name,
            format_bytes(phase.device_bytes),
            format_bytes(phase.host_bytes),
            format_bytes(phase.read_bytes),
            "" if phase.seconds is None else format_seconds(phase.seconds),
        )
    console.print(table)
    for sentence in (*plan.notes, *plan.blocks.sentences):
        console.print(sentence, soft_wrap=True)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text.strip())
    if found is None:
        raise ArgsError(f"size={text!r} is no size: give width and height, as 832x480")
    return int(found[1]), int(found[2])
