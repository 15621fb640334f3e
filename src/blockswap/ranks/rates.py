"""How fast the ranks of a host copy over their links, all at once, and how fast they gather."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import Any

import torch

from ..ambient import undisturbed
from ..plan.timing.shared_link import RankRates
from ..stream.device import Device
from .companions import CompanionRanks
from .group import Ranks

# Large enough for a link to show its rate, small enough for an opening.
MEASURED_BYTES = 64 << 20
_ROUNDS = 3
_LEAST_SECONDS = 1e-9  # what no clock tells apart from nothing


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes a second of one rank: over its link, and of what a gather brings it."""

    link: float
    gather: float


def measure(
    device: Device,
    ranks: Ranks,
    companions: CompanionRanks,
    source: torch.Tensor | None,
    target: torch.Tensor,
) -> dict[int, Rates]:
    """The rates of each rank. Every one must call it, with as many bytes in its own tensors.

    `source` is host memory that blocks are copied from, None where they compute where they are
    read; `target` device memory.
    """
    nbytes = min(target.numel() if source is None else source.numel(), target.numel())
    nbytes = min(nbytes, MEASURED_BYTES)
    part = nbytes // companions.parts // 256 * 256 or nbytes // companions.parts
    whole = target.narrow(0, 0, part * companions.parts)
    own = whole.narrow(0, companions.part * part, part)

    def copy() -> None:
        if source is not None:
            whole.copy_(source.narrow(0, 0, whole.numel()), non_blocking=True)

    def gather() -> None:
        companions.gather(whole, own, "a measurement")

    stream = device.new_stream()
    with undisturbed():
        device.synchronize()  # the target was made on another stream
        ranks.agree("measure links", None)
        copying = _seconds(device, stream, copy)
        ranks.agree("measure gathers", None)
        gathering = _seconds(device, stream, gather)
    arriving = part * (companions.parts - 1)
    link = inf if source is None else whole.numel() / copying
    return ranks.agree("compare rates", Rates(link, arriving / gathering))


def slowest(told: Mapping[int, Rates]) -> RankRates:
    """What all ranks of a host together go by."""
    links, gathers = (
        [one.link for one in told.values()],
        [one.gather for one in told.values()],
    )
    return RankRates(len(told), min(links), min(gathers))


def _seconds(device: Device, stream: Any, work: Any) -> float:
    """The median of a few rounds, on the device's clock; one more goes ahead."""
    rounds = []
    with device.on(stream):
        for _ in range(_ROUNDS + 1):
            began, ended = (device.new_event(timing=True) for _ in range(2))
            began.record(stream)
            work()
            ended.record(stream)
            ended.synchronize()
            rounds.append(began.elapsed_time(ended) / 1e3)
    return max(median(rounds[1:]), _LEAST_SECONDS)
