"""A process group for the simulated accelerator: over gloo, with copies on the current stream."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class _Done:
    def wait(self) -> bool:
        return True


class SimGroup(dist.ProcessGroup):
    """All-gather alone. Work on the stream before it is waited for; what follows is enqueued."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def all_gather_single(self, whole: torch.Tensor, part: torch.Tensor, options: Any) -> _Done:
        mine = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        mine.copy_(part)
        there = [torch.empty_like(mine) for _ in range(self.size())]
        self._gloo.allgather([there], [mine]).wait()
        whole.copy_(torch.cat(there).pin_memory(), non_blocking=True)
        return _Done()

    _allgather_base = all_gather_single  # its name before torch 2.13

    def getBackendName(self) -> str:
        return "simgather"

    def shutdown(self) -> None:
        pass


def register() -> None:
    """Once a process: `sim` gets a backend, as cuda has nccl."""
    dist.Backend.register_backend("simgather", SimGroup, devices=["sim"])
