"""Owns how a command runs under torchrun: its ranks, the device of each, which of them speaks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import inf, isinf
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ..errors import ArgsError
from ..plan.inputs.machine import Machine
from ..units import format_bytes, format_rate, parse_bytes
from .console import new_table

if TYPE_CHECKING:
    from ..plan.timing.shared_link import RankRates
    from ..ranks.group import Ranks
    from ..ranks.rates import Rates

_MOST_RANKS = 64  # of one host
_WHOLE = (
    "activations and compute are those of a whole forward on each rank: sequence parallelism "
    "(Ulysses, ring) divides them"
)


@dataclass(frozen=True, slots=True)
class Launch:
    """The ranks that torchrun has started; `device` is this one's. One of them prints."""

    ranks: Ranks
    mesh: Any
    device: str

    @property
    def speaks(self) -> bool:
        return self.ranks.rank == self.ranks.ranks[0]


@dataclass(frozen=True, slots=True)
class RankFigures:
    """What one rank has: host 0, 1 ..., its device, and rates while all ranks of a host measure."""

    host: int
    device: str
    free_bytes: int | None
    rates: Rates | None


@contextmanager
def launched(device: str | None) -> Iterator[Launch | None]:
    """The ranks of this command; None where torchrun has not started it.

    `device`: what was asked for; an accelerator without a number is the rank's own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield None
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from ..ranks.group import ranks_of
    from ..stream.device import best_device

    wanted = best_device() if device is None else torch.device(device)
    if wanted.type != "cpu" and wanted.index is None:
        wanted = torch.device(wanted.type, int(os.environ.get("LOCAL_RANK", "0")))
    started = dist.is_initialized()
    if not started:
        dist.init_process_group("gloo")
    try:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        yield Launch(ranks_of(mesh), mesh, str(wanted))
    finally:
        if not started:
            dist.destroy_process_group()


def figures_of_ranks(launch: Launch) -> dict[int, RankFigures]:
    """What each rank has, measured now. Every rank must call it."""
    import torch

    from ..ranks.companions import make_companions
    from ..ranks.rates import MEASURED_BYTES, measure
    from ..stream.device import open_device

    ranks, here = launch.ranks, launch.ranks.of_this_host()
    with ranks.together("find the devices"):
        device = open_device(launch.device)
        if not device.on_host:
            torch.accelerator.set_device_index(device.torch_device.index)
    free, told = device.free_bytes(), {}
    companions = None
    if len(here.ranks) > 1:
        companions = make_companions(here, device.torch_device, MEASURED_BYTES)
    if companions is not None:
        with here.together("make buffers to measure with"):
            memory = None if device.on_host else device.pin(MEASURED_BYTES)
            target = device.allocate(MEASURED_BYTES)
        told = measure(device, here, companions, memory, target)
        companions.close()
    places = list(dict.fromkeys(ranks.hosts))
    host = places.index(ranks.hosts[ranks.ranks.index(ranks.rank)])
    name = f"{launch.device}" if device.on_host else f"{launch.device} {device.model_name()}"
    return ranks.agree("tell what each has", RankFigures(host, name, free, told.get(ranks.rank)))


def rates_of_first_host(figures: dict[int, RankFigures]) -> RankRates | None:
    """What the ranks of the speaker's host go by; None where it is alone there."""
    from ..ranks.rates import slowest

    told = {r: one.rates for r, one in figures.items() if one.host == 0 and one.rates is not None}
    return slowest(told) if told else None


@dataclass(frozen=True, slots=True)
class Together:
    """The ranks that a plan is for: `rates` are those of a host, `free_bytes` the least of all."""

    rates: RankRates | None
    free_bytes: int | None = None
    figures: dict[int, RankFigures] | None = None
    speaks: bool = True

    def print(self, console: Console) -> None:
        """One table of all ranks, where they were there to be measured."""
        if self.figures is not None:
            console.print(rank_table(self.figures))
        for sentence in (rank_sentence(self.rates), _WHOLE):
            console.print(f"- {sentence}", soft_wrap=True)

    def to_dict(self) -> dict[str, Any]:
        """For `json.dumps`."""
        figures = self.figures or {}
        return {
            "rates": None if self.rates is None else finite(asdict(self.rates)),
            "ranks": {str(rank): finite(asdict(one)) for rank, one in figures.items()},
        }


@dataclass(frozen=True, slots=True)
class RanksAsked:
    """`--ranks` and `--gather`, as they were written."""

    ranks: int | None
    gather: str | None

    def found(self, machine: Machine, *, elsewhere: bool) -> Together | None:
        """Those that were asked for, or that torchrun has started; None where there is one.

        Raises ArgsError. Every rank must call it.
        """
        with launched(None) as launch:
            if launch is None:
                return self._assumed(machine)
            if elsewhere or self.ranks is not None or self.gather is not None:
                raise ArgsError(
                    "a card that is not at hand, --ranks or --gather was given under torchrun, "
                    "whose own ranks and devices are measured: run blockswap plan by itself"
                )
            figures = figures_of_ranks(launch)
            free = [one.free_bytes for one in figures.values() if one.free_bytes is not None]
            rates = rates_of_first_host(figures)
            return Together(rates, min(free, default=None), figures, launch.speaks)

    def _assumed(self, machine: Machine) -> Together | None:
        from ..plan.timing.shared_link import RankRates

        if self.ranks is None and self.gather is not None:
            raise ArgsError(f"--gather {self.gather} is for several ranks: give --ranks too")
        if self.ranks is None or self.ranks == 1:
            return None
        if not 1 < self.ranks <= _MOST_RANKS:
            raise ArgsError(f"--ranks {self.ranks} is no count: give 1 to {_MOST_RANKS}")
        link = inf if machine.on_host else machine.pinned_link
        said = "as given" if self.gather is not None else "gathers taken to be as fast as the link"
        gather = link if self.gather is None else float(parse_bytes(self.gather, name="--gather"))
        if not link or not gather or isinf(gather):
            raise ArgsError(
                f"--ranks {self.ranks} needs the rates of link and gathers, which are not known: "
                "give --gather, and --gpu or a blockswap probe"
            )
        return Together(RankRates(self.ranks, link, gather, said))


def least_free(together: Together | None, free_bytes: int | None) -> int | None:
    """Free memory of the device, or of the rank that has least of it."""
    told = None if together is None else together.free_bytes
    return free_bytes if told is None else told


def finite(told: dict[str, Any]) -> dict[str, Any]:
    """The same for JSON, which has no infinity: a link that is not there is None."""
    return {
        name: finite(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and isinf(value)
        else value
        for name, value in told.items()
    }


def rank_table(figures: dict[int, RankFigures]) -> Table:
    """A row for each rank."""
    table = new_table("rank", "host", "device", "free memory", "link, all at once", "gather")
    for rank, one in figures.items():
        free = "unknown" if one.free_bytes is None else format_bytes(one.free_bytes)
        link = gather = "not measured"
        if one.rates is not None:
            link = "none" if isinf(one.rates.link) else format_rate(one.rates.link)
            gather = format_rate(one.rates.gather)
        table.add_row(str(rank), str(one.host), one.device, free, link, gather)
    return table


def rank_sentence(rates: RankRates | None) -> str:
    """Which way blocks come faster."""
    if rates is None:
        return (
            "each rank brings all of a block: it is alone on its host, or torch has no collectives "
            "for its device"
        )
    if isinf(rates.link):
        return (
            f"what stays in the file comes to each of {rates.ranks} ranks at "
            f"{format_rate(rates.in_parts)} at most in parts; there is no link"
        )
    parts, alone = format_rate(rates.in_parts), format_rate(rates.link)
    better = "in parts" if rates.pay("ram", None) else "by each rank itself"
    return (
        f"a block comes to each of {rates.ranks} ranks at {parts} in parts, at {alone} where each "
        f"copies all of it: {better} is faster"
    )
