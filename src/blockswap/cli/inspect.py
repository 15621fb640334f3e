"""Owns `blockswap inspect`: which model a file is, and what its blocks weigh."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..layout.checkpoint import open_checkpoint
from ..layout.formats import unpacked
from ..layout.geometry import WanGeometry
from ..layout.geometry.families import saying_where_a_config_goes
from ..layout.geometry.joined import joined
from ..layout.summary import CheckpointSummary
from ..report.words import count_of
from ..units import format_bytes
from .console import new_console, print_facts
from .inspection import Inspection, inspect_checkpoint
from .other_models import library_folder, print_library_model
from .part_table import print_parts

_NAMED = 3


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|FOLDER",
            help="A .safetensors file, a sharded checkpoint's index, or its folder.",
            show_default=False,
        ),
    ],
    module: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A module that goes onto the model, such as VACE's."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Of a single file that is not Wan's: the folder of its config.json."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show which model a checkpoint is, its dtypes, bytes per block and, of Wan's, geometry.

    Only headers are read, so it takes no time however large the file is. The exit code is 1 where
    the checkpoint would not open because of its dtypes.
    """
    folder = library_folder(path, config, module or ())
    if folder is not None:
        print_library_model(path, folder, config, as_json=as_json)
        return
    with saying_where_a_config_goes("--config"):
        files = map(open_checkpoint, (path, *(module or ())))
        found = inspect_checkpoint(joined([unpacked(file) for file in files]))
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        console = new_console()
        print_facts(console, str(path), _facts(found))
        print_parts(console, found.units, (found.rest,))
        last = found.refused and f"does not open: {found.refused}"
        console.print(last or _gain(found.summary), soft_wrap=True, markup=False)
    if found.refused:
        raise typer.Exit(1)


def _facts(found: Inspection) -> tuple[tuple[str, str], ...]:
    summary, geometry = found.summary, found.summary.geometry
    files = count_of(len(found.files), "file")
    values = f"{summary.parameters / 1e9:.3g} B parameters"
    sizes = summary.dtype_bytes.items()
    facts = [
        ("model", " or ".join(summary.variants) or "a Wan transformer of no published geometry"),
        ("size", f"{format_bytes(summary.nbytes)} in {files}, {values}"),
        ("dtypes", ", ".join(f"{dtype} {format_bytes(nbytes)}" for dtype, nbytes in sizes)),
        ("names", geometry.naming + (f", prefix {found.prefix}" if found.prefix else "")),
        ("blocks", _blocks(geometry)),
        ("channels", f"{geometry.in_channels} in, {geometry.out_channels} out"),
        ("patch", " x ".join(map(str, geometry.patch_size))),
        ("text", f"{geometry.text_dim} wide"),
        ("aligned", f"{_share(summary.aligned_16)} of tensors to 16 bytes, "
                    f"{_share(summary.aligned_4096)} to 4096"),
    ]  # fmt: skip
    if found.computes_in is not None:
        facts.append(("computes in", f"{found.computes_in}, dequantised when it comes"))
    facts.extend(("note", note) for note in found.notes)
    if geometry.image_dim is not None:
        facts.append(("image", f"{geometry.image_dim} wide"))
    notes = (
        ("extras", geometry.extras, "scales of a quantised file"),
        ("unused", geometry.unused, "read by no forward"),
        ("left out", found.left_out, "no part of the transformer"),
    )
    facts.extend((what, f"{_some(names)}: {why}") for what, names, why in notes if names)
    return tuple(facts)


def _share(share: float) -> str:
    return f"{share * 100:.0f} %"


def _some(names: tuple[str, ...]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _gain(summary: CheckpointSummary) -> str:
    blocks = sum(size for name, size in summary.unit_bytes.items() if name.startswith("blocks."))
    return (
        f"Each streamed block keeps {format_bytes(summary.block_bytes_max)} off the device; "
        f"all {summary.block_count} blocks are {format_bytes(blocks)}."
    )


def _blocks(geometry: WanGeometry) -> str:
    words = f"{geometry.num_layers} of {geometry.dim} wide, {geometry.num_heads} heads"
    words += f" of {geometry.head_dim}, ffn {geometry.ffn_dim}"
    if geometry.num_vace_blocks:
        words += f"; {geometry.num_vace_blocks} VACE blocks beside them"
    return words
