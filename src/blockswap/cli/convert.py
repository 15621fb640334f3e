"""Owns `blockswap convert`: a checkpoint rewritten to stream best, or compared with one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ArgsError
from ..report.words import count_of
from ..units import format_bytes
from .console import new_console, new_progress

if TYPE_CHECKING:
    from rich.console import Console

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8_scaled": "fp8_scaled"}
_SHOWN = 10


# A command's parameters are its options.
def convert(  # noqa: PLR0913, PLR0917
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A .safetensors file, an index or a folder.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="The .safetensors file to write.")
    ],
    module: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A module that becomes part of it, such as VACE's."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="bf16, fp16, fp32 or fp8_scaled; else as stored.", show_default=False),
    ] = None,
    dtype_all: Annotated[
        bool, typer.Option("--dtype-all", help="Cast norms, modulation, time embedding, too.")
    ] = False,
    no_padding: Annotated[
        bool,
        typer.Option("--no-padding", help="No extra tensors; blocks do not start on 4 KiB."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--force", help="Replace what is there.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Write nothing, compare TARGET with SOURCE.")
    ] = False,
) -> None:
    """Rewrite a checkpoint for streaming: each block in one piece, in the dtype that is needed.

    It is optional: blockswap streams any checkpoint as it is. The new file is an ordinary
    safetensors file. Interrupted, the same command goes on where it was.
    """
    sources = (source, *(module or ()))
    if verify:
        if dtype is not None or dtype_all or no_padding or overwrite:
            raise ArgsError("--verify writes nothing: leave the other options out")
        _verify(sources, target)
        return
    if dtype_all and dtype is None:
        raise ArgsError("--dtype-all casts more tensors to --dtype: give --dtype, too")
    from ..convert import convert as run

    console = new_console()
    with new_progress(console) as bar:
        task = bar.add_task(f"converting {source.name}", total=None, note="")

        def progress(done: int, total: int) -> None:
            # Every byte is written, then read back.
            half = total // 2
            step = "written" if done <= half else "compared"
            note = f"{format_bytes(done if done <= half else done - half)} {step}"
            bar.update(task, completed=done, total=total, note=note)

        try:
            made = run(
                sources,
                target,
                dtype=_chosen(dtype),
                everything=dtype_all,
                padding=not no_padding,
                overwrite=overwrite,
                progress=progress,
            )
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(
                "interrupted before it was done: the same command goes on where it was"
            ) from interrupt
    for note in made.notes:
        console.print(note, soft_wrap=True)
    if made.resumed_bytes:
        console.print(f"went on from {format_bytes(made.resumed_bytes)}", soft_wrap=True)
    console.print(
        f"wrote {made.path}: {format_bytes(made.nbytes)}, {count_of(made.tensors, 'tensor')} "
        f"({made.cast_tensors} cast), {format_bytes(made.padding_bytes)} of padding, "
        "compared with the source",
        soft_wrap=True,
    )


def _verify(sources: tuple[Path, ...], target: Path) -> None:
    from ..convert import verify_pair

    console = new_console()
    with new_progress(console) as bar:
        task = bar.add_task(f"comparing {target.name}", total=None, note="")

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, note=format_bytes(done))

        found = verify_pair(sources, target, progress=progress)
    if not found.differences:
        count = count_of(found.tensors, "tensor")
        label = " + ".join(map(str, sources))
        console.print(f"{target}: {count} equal to a cast of {label}", soft_wrap=True)
        return
    _print_differences(console, found.differences)
    raise typer.Exit(1)


def _print_differences(console: "Console", differences: tuple[str, ...]) -> None:
    for difference in differences[:_SHOWN]:
        console.print(difference, soft_wrap=True)
    more = len(differences) - _SHOWN
    if more > 0:
        console.print(f"and {more} more")


def _chosen(text: str | None) -> str | None:
    if text is None:
        return None
    chosen = _DTYPES.get(text.lower(), text.lower())
    if chosen not in _DTYPES.values():
        raise ArgsError(f"--dtype={text!r} is not known: use one of {', '.join(_DTYPES)}")
    return chosen
