"""Owns `blockswap synth`: a checkpoint of random weights, to try things without a download."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ArgsError
from ..layout.geometry import VARIANTS, parameter_count
from ..published import PUBLISHED
from ..report.words import count_of
from ..units import format_bytes, parse_bytes
from .console import new_console, new_progress, new_table

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}
_NAMINGS = ("original", "diffusers")


# A command's parameters are its options.
def synth(  # noqa: PLR0913, PLR0917
    variant: Annotated[
        str | None, typer.Argument(help="A model's name; --list shows them.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Argument(
            help="A .safetensors file; with --shards, or for a model that is not Wan's, a folder.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32 or fp8.")] = "bf16",
    mixed: Annotated[bool, typer.Option("--mixed", help="Norms stay in fp32.")] = False,
    shards: Annotated[
        str | None, typer.Option(help="Largest shard, as 10GB.", show_default=False)
    ] = None,
    naming: Annotated[
        str | None,
        typer.Option(help="original (Wan's by default) or diffusers tensor names."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal bytes.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--force", help="Replace what is there.")
    ] = False,
    list_variants: Annotated[bool, typer.Option("--list", help="Show the models.")] = False,
) -> None:
    """Write a checkpoint with random weights in a published model's true geometry and dtype."""
    if list_variants:
        _print_variants()
        return
    if variant is None or out is None:
        raise ArgsError(
            "VARIANT and OUT are both needed, as in: "
            "blockswap synth wan2.1-t2v-1.3b model.safetensors (--list shows the variants)"
        )
    options: dict[str, Any] = {
        "dtype": _chosen("--dtype", dtype, _DTYPES),
        "naming": naming and _chosen("--naming", naming, {name: name for name in _NAMINGS}),
        "mixed": mixed,
        "shard_bytes": None if shards is None else parse_bytes(shards, name="--shards"),
        "seed": seed,
        "overwrite": overwrite,
    }
    _write(variant, out, options)


def _write(variant: str, out: Path, options: dict[str, Any]) -> None:
    from ..synth import synth as write_checkpoint

    console = new_console()
    with new_progress(console) as bar:
        task = bar.add_task(f"writing {out.name}", total=None, note="")

        def progress(done: int, total: int) -> None:
            note = f"{format_bytes(done)} of {format_bytes(total)}"
            bar.update(task, completed=done, total=total, note=note)

        written = write_checkpoint(variant, out, progress=progress, **options)
    files = count_of(len(written.files), "file")
    console.print(
        f"wrote {written.path}: {format_bytes(written.nbytes)}, "
        f"{written.tensors} tensors in {files}",
        soft_wrap=True,
    )


def _chosen(option: str, text: str, choices: dict[str, str]) -> str:
    if text.lower() not in choices:
        raise ArgsError(f"{option}={text!r} is not known: use one of {', '.join(choices)}")
    return choices[text.lower()]


def _print_variants() -> None:
    table = new_table("variant", "blocks", "width", "VACE blocks", "values", "in bf16")
    for name, geometry in VARIANTS.items():
        count = parameter_count(geometry)
        table.add_row(
            name,
            str(geometry.num_layers),
            str(geometry.dim),
            str(geometry.num_vace_blocks or "none"),
            f"{count / 1e9:.2f} x 10^9",
            format_bytes(2 * count),
        )
    console = new_console()
    console.print(table)
    console.print(f"As folders of diffusers: {', '.join(PUBLISHED)}.", soft_wrap=True)
