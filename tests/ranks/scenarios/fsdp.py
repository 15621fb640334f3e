"""The same model under FSDP2 with CPU offload and swapped: what is gathered and what is held."""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

import blockswap

from .given import Wide, pss


class _Gathered(TorchDispatchMode):
    """Counts the bytes that gathers bring to this rank."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith("c10d::_allgather_base_"):
            whole, part = args[0], args[1]
            self.nbytes += (whole.numel() - part.numel()) * whole.element_size()
        return func(*args, **(kwargs or {}))


def beside_fsdp(rank: int, mesh: DeviceMesh, schedule: str) -> dict[str, Any]:
    """The same model under FSDP2 with CPU offload, or ours: bytes of a forward and of the host."""
    torch.manual_seed(7)
    x = torch.linspace(-1, 1, 1024).expand(2, 1024)
    model = Wide().requires_grad_(False)
    weights = sum(p.numel() * 4 for p in model.parameters())
    with torch.no_grad():
        expected = model(x)
    dist.barrier()
    before = pss() - weights
    if schedule == "fsdp":
        policy = CPUOffloadPolicy(pin_memory=False)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, offload_policy=policy)
        fully_shard(model, mesh=mesh, offload_policy=policy)
    else:
        blockswap.swap_blocks(model, {"blocks_to_swap": 24}, device="cpu", mesh=mesh)
    counted = _Gathered()
    with torch.no_grad():
        model(x)
        with counted:
            out = model(x)
    dist.barrier()
    held = pss() - before
    dist.barrier()
    return {
        "equal": torch.equal(out, expected),
        "gathered": counted.nbytes,
        "host": held,
        "weights": weights,
    }
