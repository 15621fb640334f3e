"""Weights that rest once for all ranks of a host: equality, and what each rank reads and holds."""

import gc
import os
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import forward, fresh, skeleton
from safetensors.torch import save_file
from torch.distributed.device_mesh import DeviceMesh

import blockswap
from blockswap.ranks import group

from .given import Wide, device_of, given, peak_of_ranks, pss


def equal(
    rank: int, mesh: DeviceMesh, device: str, family: str, gives: str, args: Any
) -> dict[str, Any]:
    """Three forwards while swapped and one after closing, beside the unswapped model's."""
    where = device_of(device)
    with torch.no_grad():
        expected = forward(fresh(family).to(where), family, where)
        after = forward(fresh(family), family, torch.device("cpu"))
    model = given(rank, family, gives)
    with torch.no_grad():
        with blockswap.swap_blocks(model, args, device=where, mesh=mesh) as swap:
            outputs = [forward(model, family, where) for _ in range(3)]
            report = str(swap.report())
        closed = forward(model, family, torch.device("cpu"))
    return {
        "equal": [torch.equal(out, expected) for out in outputs],
        "closed": torch.equal(closed, after),
        "streamed": len(swap.plan.streamed),
        "said": "rest once in host memory" in report,
        "staged": "pinning failed" in report,
    }


def opened(rank: int, mesh: DeviceMesh, family: str, path: str) -> dict[str, Any]:
    """A model opened from its file by all ranks, beside the loaded one; bytes that were read."""
    here = torch.device("cpu")
    if rank == 0:
        save_file(fresh(family).state_dict(), path, {"wan.num_heads": "3"})
    dist.barrier()
    with torch.no_grad():
        expected = forward(fresh(family), family, here)
        before = _read_bytes()
        model = blockswap.open_transformer(
            path, {"blocks": "1-3"}, device=here, skeleton=skeleton(family), mesh=mesh
        )
        read = _read_bytes() - before
        outputs = [forward(model, family, here) for _ in range(2)]
        model.blockswap.close()  # type: ignore[union-attr, operator]
        outputs.append(forward(model, family, here))
    return {"equal": [torch.equal(out, expected) for out in outputs], "read": read}


def _read_bytes() -> int:
    found = re.search(r"^rchar: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found
    return int(found.group(1))


def memory(rank: int, mesh: DeviceMesh, gives: str) -> dict[str, Any]:
    """Proportional bytes of this process before, while swapped, and after closing."""
    torch.manual_seed(7)
    gc.collect()
    before = pss()
    with torch.device("cpu" if rank == 0 or gives == "weights" else "meta"):
        model = Wide().requires_grad_(False)
    with peak_of_ranks(rank) as opening:
        swap = blockswap.swap_blocks(model, {"blocks_to_swap": 20}, device="cpu", mesh=mesh)
    x = torch.linspace(-1, 1, 1024).expand(2, 1024)
    with torch.no_grad():
        out = model(x)
    dist.barrier()
    opened = pss()
    with peak_of_ranks(rank) as closing:
        swap.close()
    closed = pss()
    dist.barrier()
    segments = Path("/proc/self/maps").read_text().count("blockswap weights")
    return {
        "opened": opened - before,
        "peaks": [opening.above, closing.above],
        "closed": closed - before,
        "weights": sum(p.numel() * 4 for p in model.parameters()),
        "out": out.double().sum().item(),
        "segments": segments,
        "left": sorted(os.listdir("/dev/shm")),
    }


def two_hosts(rank: int, mesh: DeviceMesh) -> dict[str, Any]:
    """Two ranks a host; the first of each has the weights: who shares with whom, and equality."""
    here = torch.device("cpu")
    with torch.no_grad():
        expected = forward(fresh("mini"), "mini", here)
        model = given(rank % 2, "mini", "meta")
        with blockswap.swap_blocks(model, {"blocks_to_swap": 3}, device="cpu", mesh=mesh) as swap:
            outputs = [forward(model, "mini", here) for _ in range(2)]
            sentences = swap.measured().sentences
    maps = Path("/proc/self/maps").read_text().splitlines()
    segments = {line.split()[4] for line in maps if "blockswap weights" in line}
    return {
        "equal": [torch.equal(out, expected) for out in outputs],
        "said": [s for s in sentences if "for the 2 ranks of this host" in s],
        "segments": sorted(segments),
        "host": group.ranks_of(mesh).neighbours,
    }
