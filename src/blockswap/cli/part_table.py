"""Owns the table of a checkpoint's parts: equal neighbours in one row, the rest at the end."""

from collections.abc import Sequence

from rich.console import Console

from ..units import format_bytes
from .console import new_table
from .inspection import Part, equal_runs

_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8"}


def print_parts(console: Console, units: Sequence[Part], beside: Sequence[Part]) -> None:
    """The units in the order of a forward, then what is beside them."""
    table = new_table("part", "count", "each", "tensors", "dtypes", "align", "ranges", "files")
    for run in equal_runs(units):
        table.add_row(*_row(run))
    table.add_section()
    for part in beside:
        table.add_row(*_row((part,)))
    console.print(table)


def _row(run: tuple[Part, ...]) -> tuple[str, ...]:
    part = run[0]
    stem, _, last = part.name.rpartition(".")
    # The path to an embedder is long and says nothing more; that to a block is its list's name.
    name = part.name if last.isdecimal() else last
    if len(run) > 1:
        name = f"{stem}.{last}-{run[-1].name.rpartition('.')[2]}"
    return (
        name,
        str(len(run)),
        format_bytes(part.nbytes),
        str(part.tensors),
        " + ".join(_SHORT.get(dtype, dtype) for dtype in part.dtypes),
        f"{part.alignment} B",
        str(part.ranges),
        str(part.shards),
    )
