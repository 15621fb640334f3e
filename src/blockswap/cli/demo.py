"""Owns `blockswap demo`: a clip from the shipped model, with most of its blocks streamed."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..report.rank_table import HEAD
from ..units import format_seconds
from .console import new_console, new_progress, new_table, print_facts
from .launch import launched

if TYPE_CHECKING:
    from .demo_run import DemoRequest, DemoResult

_DEFAULT_PROMPT = "red ball right"
_DEFAULT_COUNT = 6  # of the shipped model's 8 blocks


# A command's parameters are its options.
def demo(  # noqa: PLR0913, PLR0917
    prompt: Annotated[
        str, typer.Argument(help="A colour, a shape and a direction.")
    ] = _DEFAULT_PROMPT,
    out: Annotated[Path, typer.Option(help="Folder for the video and the pictures.")] = Path(
        "out/demo"
    ),
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps; more are finer.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another clip.")] = 0,
    blocks: Annotated[
        str | None, typer.Option(help="Which blocks to stream, as 0,2,3-5.", show_default=False)
    ] = None,
    blocks_to_swap: Annotated[
        int | None,
        typer.Option(
            help=f"How many blocks to stream. [default: {_DEFAULT_COUNT} of 8]", show_default=False
        ),
    ] = None,
    vram: Annotated[
        str | None,
        typer.Option(help="Device memory for weights, as 4MiB.", show_default=False),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(
            help="Host memory for streamed blocks; without it they stay in the file.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, xpu ...")] = "cpu",
    prefetch: Annotated[
        int | None,
        typer.Option(help="Blocks fetched ahead; the plan decides.", show_default=False),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="A line for every block.")] = False,
) -> None:
    """Draw a clip with the shipped model twice: fully loaded, and with its blocks streamed.

    Compares both to the last bit, and prints what was streamed and how long it took.

    Writes demo.mp4, contact_sheet.png, timeline.png and trace.json. Under torchrun all ranks make
    the clip with one copy of the weights, and one table tells of them.
    """
    from .. import BlockSwapArgs
    from ..demo.prompt import parse_prompt
    from ..demo.sampling import SamplingSettings
    from .demo_run import DemoRequest, run_demo

    parse_prompt(prompt)  # refuse an unknown word before any work
    free_choice = blocks is None and blocks_to_swap is None and vram is None
    args = BlockSwapArgs(
        blocks=blocks,
        blocks_to_swap=_DEFAULT_COUNT if free_choice else blocks_to_swap,
        prefetch_blocks=prefetch,
        block_swap_debug=debug,
        vram_budget=vram,
        ram_budget=ram,
    )
    settings = SamplingSettings(seed=seed)
    if steps is not None:
        settings = replace(settings, steps=steps)
    with launched(device) as launch:
        mesh = None if launch is None else launch.mesh
        device = device if launch is None else launch.device
        args = replace(args, ram_budget=_ram_budget(ram, device, alone=launch is None))
        writes = launch is None or launch.speaks
        request = DemoRequest(prompt, out, settings, args, device, mesh, writes)
        console = new_console(stderr=not writes)
        result = _run_with_bar(console, request, run_demo)
        if writes:
            _tell(console, request, result)
    if result.differing:
        raise typer.Exit(1)


def _ram_budget(asked: str | None, device: str, *, alone: bool) -> str | None:
    # The demo streams from the file. The CPU does so anyway where it is alone, and there a budget
    # of nothing would mean the memory that it computes in.
    return "0" if asked is None and not (alone and device.startswith("cpu")) else asked


def _run_with_bar(console: Console, request: "DemoRequest", run: Any) -> "DemoResult":
    # A bar redraws its line, and would paint over those that are printed for every block.
    with new_progress(console, quiet=request.args.block_swap_debug) as bar:
        tasks: dict[str, Any] = {}

        def progress(name: str, done: int, steps: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=steps, note="")
            bar.update(tasks[name], completed=done, note=f"step {done} of {steps}")

        result: DemoResult = run(request, progress)
        return result


def _tell(console: Console, request: "DemoRequest", result: "DemoResult") -> None:
    summary = result.summary
    title = f"block swap on {summary.placement.device}: {summary.status_line()}"
    console.print()
    print_facts(console, title, summary.rows())
    console.print()
    seconds = (
        f"fully loaded {format_seconds(result.loaded_seconds)}, "
        f"blocks streamed {format_seconds(result.streamed_seconds)}"
    )
    if result.differing:
        console.print(
            f"NOT EQUAL: {result.differing} of {result.forwards} forwards differ between the model "
            "fully loaded and the model with its blocks streamed. This must never happen: please "
            "report it with trace.json and the lines above.",
            style="bold white on red",
        )
    else:
        console.print(
            f"equal to the last bit: all {result.forwards} forwards of {request.prompt!r}",
            style="bold green",
            soft_wrap=True,
        )
    console.print(seconds, soft_wrap=True)
    if result.ranks is not None:
        table = new_table(*HEAD)
        for row in result.ranks.rows():
            table.add_row(*row)
        console.print(table)
        for sentence in result.ranks.sentences():
            console.print(f"- {sentence}", soft_wrap=True)
    for file in result.files:
        console.print(str(file), soft_wrap=True)
