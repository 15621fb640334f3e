"""One rank of several on the simulated accelerator: the others are there as what they would bring.

Ranks with the same model, links and order do the same at the same time, so one of them shows the
time of all. What a gather brings is copied from device memory, in which the other ranks' parts were
put before, and takes (N - 1) / N of the bytes over `gather` bytes a second.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import simaccel as sim
from blockswap import BlockSwapArgs
from blockswap.layout.shares import Shares
from blockswap.ranks.reading import ReadAlone
from blockswap.store.landing import Landing
from blockswap.stream.device import Device, host_buffer, open_device
from blockswap.stream.pool.gathers import Companions
from blockswap.stream.units.transfer import Transfer
from blockswap.swap.assembly.brought_parts import BroughtParts, Runs
from blockswap.swap.assembly.parts import Parts
from blockswap.swap.assembly.unit_store import OwnMemory
from blockswap.swap.entry.checkpoint_file import Request, find_model
from blockswap.swap.entry.host_library import Source
from blockswap.swap.entry.loaded_model import find_loaded, swap_loaded
from blockswap.swap.opening import found_model
from blockswap.swap.opening.from_memory import UNLIMITED
from blockswap.swap.running.handle import Swap


@dataclass
class Others:
    """See `stream.pool.gathers.Companions`; all ranks say the same, unless `answers` says no."""

    part: int
    parts: int
    gather_rate: float = float("inf")
    slabs: dict[str, torch.Tensor] = field(default_factory=dict)  # whole units, on the device
    from_file: set[str] = field(default_factory=set)  # those of them that rest there
    posted: list[tuple[int, int]] = field(default_factory=list)
    gathered: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    parts_from: int = 1 << 62  # the entry from which the ranks part

    def post(self, entry: int, what: int) -> None:
        self.posted.append((entry, what))

    def together(self, entry: int, name: str) -> bool:
        return entry < self.parts_from

    def withdraw(self, entry: int, name: str) -> None:
        self.withdrawn.append(name)

    def gather(self, whole: torch.Tensor, part: torch.Tensor, name: str) -> None:
        self.gathered.append(name)
        size = part.numel()
        others = [p for p in range(self.parts) if p != self.part]
        targets = [whole.narrow(0, p * size, size) for p in others]
        seconds = len(others) * size / self.gather_rate
        sim.compute(seconds, reads=[part], writes=targets, name="gather")
        for p, target in zip(others, targets, strict=True):
            target.copy_(self.slabs[name].narrow(0, p * size, size))

    def close(self) -> None:
        """Nobody is told."""


class _Cutting(BroughtParts):
    """Puts whole units on the device, for the others to bring parts of."""

    def own_runs(self, runs: Runs, shares: Shares) -> list[tuple[torch.Tensor, int]]:
        slab = torch.zeros(shares.nbytes, dtype=torch.uint8)
        for memory, at in runs:
            slab.narrow(0, at, memory.numel()).copy_(memory)
        object.__setattr__(self, "whole", slab)
        return super().own_runs(runs, shares)

    def transfer(
        self, own: Transfer, whole: Transfer, unit: tuple[str, int], *rest: Any
    ) -> Transfer:
        others: Any = self.gathers.companions
        in_memory = getattr(self, "whole", None)
        object.__setattr__(self, "whole", None)
        if in_memory is None:
            others.from_file.add(unit[0])
        others.slabs[unit[0]] = (_read(whole) if in_memory is None else in_memory).to("sim")
        return super().transfer(own, whole, unit, *rest)


def _read(transfer: Any) -> torch.Tensor:
    """What a transfer from the file brings."""
    memory = host_buffer(transfer.copied_bytes)
    landing = Landing.at(memory.data_ptr())
    for piece in transfer._source.pieces(landing):
        piece()
    transfer._source.settle(landing)
    return memory


def _cut(parts: Parts, others: Companions) -> Parts:
    parts.pool.fill_with(others)
    gathers = parts.pool.gathers
    assert gathers is not None
    cutting = _Cutting if isinstance(others, Others) else BroughtParts
    return replace(parts, brought=cutting(gathers, gathers.number()))


def opened(
    path: Path,
    skeleton: torch.nn.Module,
    args: BlockSwapArgs,
    others: Companions,
    device: Device | None = None,
) -> torch.nn.Module:
    """`open_transformer(path, args, device="sim", mesh=...)` as one of the ranks."""
    device = device or open_device("sim")
    found = find_model(Source(path), args, device, Request(skeleton=skeleton))
    facts = replace(found.basis.facts, ranks=others.parts)
    found = replace(found, basis=replace(found.basis, facts=facts))
    ranks: Any = object()
    with (
        mock.patch.object(found_model, "in_parts", lambda parts, *_: _cut(parts, others)),
        mock.patch.object(found_model, "ReadByOne", lambda _, device: ReadAlone(device)),
    ):
        return found_model.open_found(found, found.basis.plan(), device, spare_ram=0, ranks=ranks)


def swapped(
    model: torch.nn.Module, args: BlockSwapArgs, others: Companions, device: Device | None = None
) -> Swap:
    """`swap_blocks(model, args, device="sim", mesh=...)` as one of the ranks."""
    device = device or open_device("sim")
    found = find_loaded(model, args, device, None)

    class Beside(OwnMemory):
        def with_others(self, parts: Parts) -> Parts:
            return _cut(parts, others)

    basis = replace(found.basis, facts=replace(found.basis.facts, ranks=others.parts))
    plan = basis.plan()
    return swap_loaded(replace(found, basis=basis), plan, device, Beside(device, UNLIMITED))
