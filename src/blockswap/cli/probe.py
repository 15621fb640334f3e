"""Owns `blockswap probe`: what this machine can do, and how each figure was found."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..errors import ReadError
from ..paths import is_there
from ..plan.inputs.machine import DiskFigures
from ..units import format_bytes, format_flops, format_rate
from .console import new_console, new_table, print_facts
from .launch import (
    Launch,
    figures_of_ranks,
    finite,
    launched,
    rank_sentence,
    rank_table,
    rates_of_first_host,
)

if TYPE_CHECKING:
    from ..probe import DiskPart, Figure, Probe, Trial


def probe(
    folder: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER|FILE",
            help="Where the models are: a scratch file is written there and removed, or a model "
            "file given here is read.",
        ),
    ] = Path("."),
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, xpu ...; by default the accelerator.", show_default=False),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure anew what is known from before.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure this machine: compute, the link to the device, and the disk of the models.

    Takes about ten seconds the first time; figures are kept, and used by plans. Under torchrun
    links and gathers of all ranks are measured at once, too.
    """
    if not is_there(folder):
        raise ReadError(f"{folder} is not there: name a folder or a file on the disk that is meant")
    from ..probe import probe as probe_machine

    with launched(device) as launch:
        if launch is not None:
            _probe_ranks(launch, folder, fresh=fresh, as_json=as_json)
            return
    with new_console(stderr=True).status("measuring; other programs at work show in the figures"):
        found = probe_machine(device, place=folder, fresh=fresh)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    _tell(found)


def _probe_ranks(launch: Launch, folder: Path, *, fresh: bool, as_json: bool) -> None:
    """Each rank by itself, one after the other; then links and gathers, all at once."""
    from ..probe import probe as probe_machine

    here = launch.ranks.of_this_host()
    found = None
    for rank in here.ranks:
        with here.together("probe its device"):
            if here.rank == rank:
                place = folder if rank == here.ranks[0] else None
                found = probe_machine(launch.device, place=place, fresh=fresh)
    figures = figures_of_ranks(launch)
    rates = rates_of_first_host(figures)
    if not launch.speaks or found is None:
        return
    if as_json:
        ranks = {str(rank): finite(asdict(one)) for rank, one in figures.items()}
        typer.echo(json.dumps(found.to_dict() | {"ranks": ranks}, indent=2))
        return
    _tell(found)
    console = new_console()
    console.print(rank_table(figures))
    console.print(rank_sentence(rates), soft_wrap=True)


def _tell(found: Probe) -> None:
    console = new_console()
    print_facts(console, found.machine.name, _facts(found))
    console.print(_figure_table(found.device.figures))
    if found.disk is not None and found.disk.figures is not None:
        console.print(_trial_table(found.disk, found.disk.figures))
    for sentence in found.sentences:
        console.print(sentence, soft_wrap=True)


def _facts(found: Probe) -> tuple[tuple[str, str], ...]:
    machine, disk = found.machine, found.disk
    facts = [
        ("device memory", _size(machine.device_bytes)),
        ("host memory", _size(machine.host_bytes)),
        ("figures", machine.source),
    ]
    if disk is not None:
        facts.append(("disk of", str(Path(disk.folder).absolute())))
        facts.append(("reads best", _best(disk.figures)))
        facts.append(("disk measured", disk.measured_at))
    if found.path is not None:
        kept = "now" if found.measured else "before, nothing was measured this time"
        facts.append(("kept in", f"{found.path}, {kept}"))
    return tuple(facts)


def _size(nbytes: int | None) -> str:
    return "unknown" if nbytes is None else format_bytes(nbytes)


def _best(figures: DiskFigures | None) -> str:
    if figures is None:
        return "not measured"
    readers = "1 reader" if figures.readers == 1 else f"{figures.readers} readers"
    how = "with O_DIRECT" if figures.direct else "without O_DIRECT"
    rate = format_rate(figures.bytes_per_second)
    return f"{readers}, {format_bytes(figures.chunk_bytes)} at a time, {how}: {rate}"


def _figure_table(figures: tuple[Figure, ...]) -> Table:
    table = new_table("figure", "rate", "how it was measured (medians)")
    how = table.columns[2]
    how.justify, how.no_wrap = "left", False
    for figure in figures:
        table.add_row(figure.name, _rate(figure), figure.how)
    return table


def _rate(figure: Figure) -> str:
    wording = format_flops if figure.unit == "FLOP" else format_rate
    return wording(figure.per_second)


def _trial_table(disk: DiskPart, best: DiskFigures) -> Table:
    table = new_table("reads", "readers", "chunk", "rate", "chosen")
    for trial in disk.trials:
        row = trial.mode, str(trial.readers), format_bytes(trial.chunk_bytes)
        chosen = "yes" if _is_best(trial, best) else ""
        table.add_row(*row, format_rate(trial.bytes_per_second), chosen)
    return table


def _is_best(trial: Trial, best: DiskFigures) -> bool:
    same = (trial.readers, trial.chunk_bytes) == (best.readers, best.chunk_bytes)
    return same and (trial.mode == "direct") == best.direct
