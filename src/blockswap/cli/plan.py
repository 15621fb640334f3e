"""Owns `blockswap plan`: how many blocks, how much memory, how long, before anything is loaded."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from ..errors import ArgsError, PlanError
from ..layout.geometry.families import saying_where_a_config_goes
from ..paths import is_there
from ..plan import Known
from ..plan.inputs.machine import DiskFigures, Machine
from ..plan.inputs.workload import ComputeDtype, KernelSet, Workload
from ..report.curve import Curve, Dot, draw_curve
from ..report.timeline import draw_timeline
from ..selection import BlockSwapArgs
from ..units import format_rate, parse_bytes
from .console import new_console
from .launch import RanksAsked, Together, least_free
from .other_models import figures_of_folder, library_folder, tell_library_plan
from .plan_options import Numbers, card_machine, companions_of

if TYPE_CHECKING:  # torch comes with forecasts, and `--help` does without
    from ..forecast import Forecast, ModelFigures, Order

# What a disk is taken to read at for a card that is not at hand: half of what PCIe 4.0 drives
# promise, about all that PCIe 3.0 drives do.
ASSUMED_DISK_RATE = 3.5e9
DOES_NOT_FIT = 1  # the exit code of a plan with a phase that has no room; a refusal has 2
# What the models beside the transformer are where nothing is said.
_BESIDE = ("bfloat16", None, False)
_READERS, _CHUNK_BYTES = 4, 16 * 2**20
_COMPUTE_DTYPES: tuple[ComputeDtype, ...] = get_args(ComputeDtype)


def plan(  # noqa: PLR0913, PLR0917 - the options of a command
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE|FOLDER",
            help="A published model (wan2.2-t2v-a14b) or a checkpoint.",
            show_default=False,
        ),
    ],
    module: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A module that goes onto the model, such as VACE's."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH", help="The clip's or picture's size; for Wan 1280x720 (5B: 704)."
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="The clip's frames, for Wan 4k+1 and 81 (5B: 121).")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="2 where guidance goes through one forward.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="What weights compute in; the file's own by default.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:STRENGTH]", help="A LoRA merged on arrival; may be repeated."),
    ] = None,
    lora_partial: Annotated[
        bool,
        typer.Option("--lora-partial", help="Leave out LoRAs' layers that the model has not."),
    ] = False,
    vram: Annotated[str | None, typer.Option(help="Bytes to use on the device, 8GiB.")] = None,
    ram: Annotated[
        str | None, typer.Option(help="Bytes of pinned RAM for blocks, the others stay on disk.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help='A card from the table, "RTX 4090"; else this machine.')
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="A card in numbers: its memory, 12GiB.")
    ] = None,
    gpu_tflops: Annotated[
        str | None, typer.Option(help="Its dense 16-bit rate in TFLOP/s, accumulating in fp32, 40.")
    ] = None,
    link: Annotated[
        str | None, typer.Option(help="What it is connected by, pcie3x8; pcie4x16 if unsaid.")
    ] = None,
    host_memory: Annotated[
        str | None, typer.Option(help="Free host memory beside a --gpu that is not at hand, 64GiB.")
    ] = None,
    disk: Annotated[
        str | None, typer.Option(help="Bytes a second that the disk reads, 3.5GB.")
    ] = None,
    blocks: Annotated[str | None, typer.Option(help="Which blocks, 0,2,3-5.")] = None,
    blocks_to_swap: Annotated[int | None, typer.Option(help="How many blocks.")] = None,
    ranks: Annotated[
        int | None,
        typer.Option(help="Ranks of one host that run it together, each with such a device."),
    ] = None,
    gather: Annotated[
        str | None,
        typer.Option(help="Bytes a second that --ranks bring each of them; as the link if unsaid."),
    ] = None,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens in a piece of a block's forward; 0: always whole."),
    ] = None,
    vae_tiled: Annotated[bool, typer.Option("--vae-tiled", help="The VAE works in tiles.")] = False,
    text_encoder: Annotated[
        str,
        typer.Option(help="Text encoder: bfloat16, float16, float32, float8, streamed, or cpu."),
    ] = "bfloat16",
    vae: Annotated[
        str | None,
        typer.Option(help="VAE: float32 (Wan's default), bfloat16 (others'), float16, or cpu."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Of a single file that is not Wan's: the folder of its config.json."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Step time against memory, in 64 steps.")
    ] = False,
    png: Annotated[
        Path | None, typer.Option(help="Draw the forecast timeline, or the curve, here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Answer "how many blocks?" for a model, a clip and a machine; no weights are needed.

    Says first whether the whole run fits (exit code 0; 1 where it does not, 2 for a refusal), then
    what stays, what is streamed and why, the peak of every phase, the time of a step, and the count
    to give to other packs. Of a class of diffusers or transformers whose inputs are not known: what
    streams, and the bytes of weights and slots. Under torchrun for all of its ranks, as measured.
    """
    numbers = Numbers(gpu_memory, gpu_tflops, link)
    elsewhere = gpu is not None or numbers != Numbers()
    _check(dtype, disk, elsewhere=elsewhere)
    machine, notes = _machine(gpu, numbers, disk, model)
    together = RanksAsked(ranks, gather).found(machine, elsewhere=elsewhere)
    if together is not None and not together.speaks:
        return
    args = BlockSwapArgs(
        blocks=blocks,
        blocks_to_swap=blocks_to_swap,
        vram_budget=vram,
        ram_budget=ram,
        chunk_tokens=chunk_tokens,
    )
    modules = tuple(module or ())
    folder = library_folder(model, config, modules) if is_there(model) else None
    clip, beside = (size, frames, batch), (text_encoder, vae, vae_tiled)
    figures, unknown = None, ""
    if folder is not None:
        figures, unknown = figures_of_folder(model, folder, config, args, dtype, notes)
    if folder is not None and figures is None:
        _refuse_forecasts({
            "--size, --frames and --batch": any(one is not None for one in clip),
            "--text-encoder, --vae and --vae-tiled": beside != _BESIDE,
            "--lora": lora or lora_partial, "--disk": disk, "--compare": compare,
            "--chunk-tokens": chunk_tokens is not None, "--png": png, "--ranks": together,
        }, unknown)  # fmt: skip
        free = _free(machine, host_memory, elsewhere=elsewhere)
        where = (machine, free) if elsewhere else None
        tell_library_plan(model, folder, config, args, dtype, where, unknown, as_json=as_json)
        return
    from ..forecast import Order, find_model, verdict_of
    from ..lora.file import open_lora
    from ..lora.request import parse_loras

    if figures is None:
        (given,) = parse_loras(lora, partial=lora_partial)
        loras = [open_lora(each) for each in given]
        with saying_where_a_config_goes("--config"):
            asked = dtype or _published_dtype(model, machine, notes)
            figures = find_model(model, asked, loras, modules)
    elif lora or lora_partial:
        raise ArgsError("--lora: LoRAs are counted for Wan's models only: leave it out")
    if chunk_tokens and not figures.subject.cuts:
        raise ArgsError(
            "--chunk-tokens: only blocks of Wan's models run in pieces of tokens: leave it out"
        )
    if compare and vram is not None:
        notes.append(f"--compare tries budgets of its own: --vram {vram} is not used")
    free = _free(machine, host_memory, elsewhere=elsewhere)
    order = Order(
        model=figures,
        workload=_workload(figures, clip, on_host=machine.on_host),
        machine=machine,
        args=args,
        companions=companions_of(
            text_encoder, figures.subject.vae_dtype if vae is None else vae, tiled=vae_tiled
        ),
        rates=None if together is None else together.rates,
        device_free_bytes=least_free(together, free["device_free_bytes"]),
        host_free_bytes=free["host_free_bytes"],
    )
    if compare:
        known = Known()
        _compare(order, known, png, notes, as_json=as_json)
        _exit_as_a_plan(replace(order, args=replace(order.args, vram_budget=None)), known)
        return
    told = _forecast(order)
    if png is not None:
        _draw(told, png)
    _print(told, notes, together, as_json=as_json)
    if not verdict_of(told).fits:
        raise typer.Exit(DOES_NOT_FIT)


def _print(told: "Forecast", notes: list[str], together: Together | None, *, as_json: bool) -> None:
    from .plan_tables import as_dict, print_forecast

    if as_json:
        ranks = {} if together is None else together.to_dict()
        typer.echo(json.dumps(as_dict(told, notes) | ranks, indent=2))
        return
    print_forecast(new_console(), told, notes)
    if together is not None:
        together.print(new_console())


def _refuse_forecasts(given: Mapping[str, object], unknown: str) -> None:
    """Raises ArgsError for options of a forecast where none can be made."""
    unused = [option for option, said in given.items() if said]
    if unused:
        raise ArgsError(f"{unused[0]} was given, and {unknown}")


def _exit_as_a_plan(order: "Order", known: Known) -> None:
    """After a comparison: the exit code, and the sentence, that the plan itself would have."""
    from ..forecast import verdict_of

    verdict = verdict_of(_forecast(order, known))
    if not verdict.fits:
        new_console(stderr=True).print(verdict.sentence, soft_wrap=True)
        raise typer.Exit(DOES_NOT_FIT)


def _forecast(order: "Order", known: Known | None = None) -> "Forecast":
    from ..forecast import forecast, largest_clip

    try:
        return forecast(order, known)
    except PlanError as error:
        clip = largest_clip(order)
        if clip is None:
            raise
        raise PlanError(
            f"{error}; the largest clip that fits is {clip.width}x{clip.height} with "
            f"{clip.frames} frame{'s' * (clip.frames != 1)}"
        ) from error


def _check(dtype: str | None, disk: str | None, *, elsewhere: bool) -> None:
    """Raises ArgsError for options that would have no effect, or that no model computes in."""
    if dtype is not None and dtype not in _COMPUTE_DTYPES:
        raise ArgsError(
            f"--dtype {dtype} is none to compute in: use one of {', '.join(_COMPUTE_DTYPES)}"
        )
    if disk is not None and not elsewhere:
        raise ArgsError(
            f"--disk {disk} is for a card that is not at hand: give --gpu too, or measure this "
            "machine's disk with blockswap probe"
        )
    if disk is not None and not parse_bytes(disk, name="--disk"):
        raise ArgsError(f"--disk {disk} reads nothing: give bytes a second, as in 3.5GB")


def _workload(
    figures: "ModelFigures", clip: tuple[str | None, int | None, int | None], *, on_host: bool
) -> Workload:
    """The clip (size, frames, batch) as this model computes it; quantised ones do in bfloat16."""
    from ..predict.subject import Wish

    size, frames, batch = clip
    dtype: ComputeDtype = next((d for d in _COMPUTE_DTYPES if d == figures.dtype), "bfloat16")
    kernels: KernelSet = "portable" if on_host else "cuda"
    return figures.subject.clip(Wish(_size(size), frames, batch, dtype, kernels))


def _size(said: str | None) -> tuple[int, int] | None:
    if said is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,9})\s*[x×*]\s*(\d{1,9})\s*", said, re.ASCII | re.IGNORECASE)
    if match is None:
        raise ArgsError(f"--size {said!r} is no size: give width and height, as in 832x480")
    return int(match[1]), int(match[2])


def _published_dtype(model: str, machine: Machine, notes: list[str]) -> str | None:
    """float16 for a published model on a card that has no bfloat16; a file keeps its own."""
    rates = dict(machine.flops)
    if machine.on_host or "float16" not in rates or "bfloat16" in rates:
        return None
    if is_there(model):
        notes.append(
            f"{machine.name} has no bfloat16: give --dtype float16 for a file that holds it"
        )
        return None
    notes.append(f"{machine.name} has no bfloat16: planned in float16")
    return "float16"


def _machine(
    gpu: str | None, numbers: Numbers, disk: str | None, model: str
) -> tuple[Machine, list[str]]:
    """The machine that is meant, and what is to be said of it."""
    rate = None if disk is None else float(parse_bytes(disk, name="--disk"))
    figures = DiskFigures(rate or ASSUMED_DISK_RATE, _READERS, _CHUNK_BYTES, direct=True)
    card = card_machine(gpu, numbers, figures)
    if card is not None:
        read = f"blocks on disk are taken to be read at {format_rate(figures.bytes_per_second)}"
        return card, [] if rate else [read]
    from ..probe import cached_probe
    from ..stream.device import best_device

    path = Path(model)
    found = cached_probe(place=path if is_there(path) else Path("."))
    if found is None:
        notes = ["no seconds: this machine was not probed, run blockswap probe or give --gpu"]
        name = str(best_device())
        return Machine(name, on_host=name == "cpu", flops=(), source="not probed"), notes
    notes = list(found.sentences)
    if found.machine.disk is None:
        notes.append("the disk of the model was not probed: run blockswap probe --folder there")
    return found.machine, notes


def _free(machine: Machine, host: str | None, *, elsewhere: bool) -> dict[str, int | None]:
    """Free memory of the machine: all of a card that is not at hand, what is free now of this."""
    if elsewhere:
        known = None if host is None else parse_bytes(host, name="--host-memory")
        return {"device_free_bytes": machine.device_bytes, "host_free_bytes": known}
    if host is not None:
        raise ArgsError(
            f"--host-memory {host} is for a card that is not at hand: give --gpu too; what is free "
            "here is found without it"
        )
    from ..store.host_memory import free_host_bytes
    from ..stream.device import best_device, open_device

    device = open_device(best_device())
    return {"device_free_bytes": device.free_bytes(), "host_free_bytes": free_host_bytes()}


def _draw(told: "Forecast", path: Path) -> None:
    foreseen = told.foreseen()
    if foreseen is None:
        raise ArgsError("there is no timeline without seconds: give --gpu or run blockswap probe")
    heading = f"Forecast: {told.order.model.label}, {told.order.workload.words}"
    draw_timeline(told.plan, foreseen, path, heading=heading)


def _compare(
    order: "Order", known: Known, png: Path | None, notes: list[str], *, as_json: bool
) -> None:
    from ..forecast import sweep
    from .plan_tables import print_sweep

    points = sweep(order, known)
    if png is not None:
        timed = [p for p in points if p.step_seconds is not None]
        if not timed:
            raise ArgsError("there is no curve without seconds: give --gpu or run blockswap probe")
        dots = tuple(Dot(p.budget_bytes, p.step_seconds or 0.0, p.streamed) for p in timed)
        name = "this machine" if order.machine is None else order.machine.name
        title = f"Forecast: {order.model.label}, {order.workload.words} on {name}"
        draw_curve(Curve(title, dots), png)
    if as_json:
        typer.echo(json.dumps([asdict(point) for point in points], indent=2))
        return
    print_sweep(new_console(), order, points, notes)
