"""The models and devices that scenarios share, and the memory that a rank holds."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import fresh
from torch import nn


class Wide(nn.Module):
    """Blocks of 4 MiB each, so that weights stand out in a process's memory."""

    def __init__(self, blocks: int = 24) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(1024, 1024, bias=False) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x).tanh()
        return x


def device_of(name: str, **rates: float) -> torch.device:
    torch.set_num_threads(1)
    if name == "cpu":
        return torch.device("cpu")
    import simaccel

    assert simaccel.unavailable_reason() is None
    simaccel.configure(mode=name.removeprefix("sim-"), races="raise", poison=True, **rates)
    simaccel.reset()
    return torch.device("sim", 0)


def own_accelerator(rank: int) -> torch.device:
    """The accelerator of this rank, of a machine that has as many; else the CPU, for a try."""
    present = torch.accelerator.current_accelerator()
    if present is None or present.type == "sim":
        return device_of("cpu")
    torch.accelerator.set_device_index(rank)
    return torch.device(present.type, rank)


def linked(device: str) -> torch.device:
    """Shared memory is pageable there, so that is the link; gathers go by faster, pinned copies."""
    import sim_group

    where = device_of(device, pageable_gb_s=5, h2d_gb_s=100, d2h_gb_s=100)
    sim_group.register()
    return where


def given(rank: int, family: str, gives: str) -> nn.Module:
    """The model as this rank has it: with weights on the first, else as `gives` says."""
    model = fresh(family)
    if rank == 0 or gives == "weights":
        return model
    for module in model.modules():  # buffers stay real
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(
                    torch.empty_like(parameter, device="meta"), requires_grad=False
                )
    return model


def pss(process: int | str = "self") -> int:
    """Proportional bytes of a process: a page that several map is counted once over all of them."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert found
    return int(found.group(1)) << 10


@dataclass
class Peak:
    """Bytes over all ranks, as the first one counts: at most above the beginning, and after."""

    above: int = 0
    after: int = 0


@contextmanager
def peak_of_ranks(rank: int) -> Iterator[Peak]:
    """Looks at the memory of all ranks, again and again, until all are through."""
    peak, ended = Peak(), threading.Event()
    pids: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pids, os.getpid())

    def together() -> int:
        return sum(map(pss, pids))

    def look() -> None:
        while not ended.wait(0.002):
            peak.above = max(peak.above, together() - began)

    began = together() if rank == 0 else 0
    dist.barrier()
    looking = threading.Thread(target=look)
    if rank == 0:
        looking.start()
    yield peak
    dist.barrier()
    ended.set()
    if rank == 0:
        looking.join()
        peak.after = together() - began
    dist.barrier()
