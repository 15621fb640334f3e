"""Meshes in other orders than the ranks', of some of them, of two dimensions; several at once."""

import time
from typing import Any

import torch
import torch.distributed as dist
from cases import forward, fresh, metadata, skeleton
from expert_pair import expected, expert
from safetensors.torch import save_file
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import blockswap
from blockswap.plan.timing.shared_link import RankRates
from blockswap.ranks import companions, gather_groups, group

from .given import device_of, linked, own_accelerator

FORWARDS = 2


def shapes(rank: int, mesh: DeviceMesh, device: str, path: str) -> dict[str, Any]:
    """Four ranks, one after the other later: outputs, gathers and neighbours of each mesh."""
    where = _where(device, rank)
    group.WAIT_SECONDS = companions.GATHER_SECONDS = 20.0
    RankRates.pay = lambda *_: True  # type: ignore[method-assign]
    if rank == 0:
        save_file(fresh("mini").state_dict(), path, metadata("mini"))
    dist.barrier()
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    meshes = {
        "turned": DeviceMesh("cpu", [3, 1, 0, 2]),
        "grid": grid,
        "inner": grid["inner"],
        "outer": grid["outer"],
        "two turned": DeviceMesh("cpu", [2, 1]),
    }
    found = {}
    with torch.no_grad():
        expected = forward(fresh("mini").to(where), "mini", where)
        for name, over in meshes.items():
            if rank not in over.mesh:
                continue
            time.sleep(0.1 * rank)
            model: Any = blockswap.open_transformer(
                path,
                {"blocks_to_swap": 4, "prefetch_blocks": 1, "ram_budget": 0},
                device=where,
                skeleton=skeleton("mini"),
                mesh=over,
            )
            equal = [torch.equal(forward(model, "mini", where), expected) for _ in range(FORWARDS)]
            gathers = model.blockswap.measured().counters.gathers
            rows = blockswap.report_of_ranks(model.blockswap, over).rows()
            model.blockswap.close()
            found[name] = {"equal": equal, "gathers": gathers, "ranks": [row[0] for row in rows]}
    return found


def two_models(rank: int, mesh: DeviceMesh, device: str) -> dict[str, Any]:
    """Two models swapped by themselves over one mesh: in one order, and each rank in its own."""
    where = _where(device, rank)
    companions.GATHER_SECONDS = 1.0
    RankRates.pay = lambda *_: True  # type: ignore[method-assign]
    found: dict[str, Any] = {}
    with torch.no_grad():
        models = [expert(number, "mini") for number in range(2)]
        wanted = [expected(number, "mini", where) for number in range(2)]
        swaps = [
            blockswap.swap_blocks(
                model, {"blocks_to_swap": 4, "prefetch_blocks": 1}, device=where, mesh=mesh
            )
            for model in models
        ]
        for name, order in (
            ("one order", (0, 1, 1, 0)),
            ("own orders", (0, 1, 0, 0, 1) if rank else (1, 0, 0, 1, 1)),
        ):
            found[name] = [torch.equal(forward(models[i], "mini", where), wanted[i]) for i in order]
        found["gathers"] = [swap.measured().counters.gathers for swap in swaps]
        found["groups"] = [len(gather_groups._in_use)]
        dist.barrier()
        for swap in swaps[:: 1 if rank else -1]:
            swap.close()
        found["groups"].append(len(gather_groups._in_use))
    return found


def _where(device: str, rank: int) -> torch.device:
    if device == "own":
        return own_accelerator(rank)
    return device_of("cpu") if device == "cpu" else linked(device)
