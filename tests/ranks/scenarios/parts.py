"""Blocks that ranks bring in parts: equality, what each rank copies, and what is gathered."""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import forward, fresh, skeleton
from torch.distributed.device_mesh import DeviceMesh

import blockswap
from blockswap.plan.timing.shared_link import RankRates

from .given import Wide, device_of, given, linked, own_accelerator


def in_parts(rank: int, mesh: DeviceMesh, device: str) -> list[dict[str, Any]]:
    """Forwards on the simulated accelerator with gathers, for a list, a count and automatic."""
    where = linked(device)
    found = []
    for family, args in (
        ("mini", {"blocks": "0,2-3", "prefetch_blocks": 1}),
        ("original", {"blocks_to_swap": 4, "prefetch_blocks": 1}),
        ("mini", {"vram_budget": 16 << 10}),
    ):
        with torch.no_grad():
            expected = forward(fresh(family).to(where), family, where)
            model = given(rank, family, "meta")
            with blockswap.swap_blocks(model, args, device=where, mesh=mesh) as swap:
                outputs = [forward(model, family, where) for _ in range(3)]
                counters, plan = swap.measured().counters, swap.plan
                report = str(swap.report())
        found.append(
            {
                "equal": [torch.equal(out, expected) for out in outputs],
                "copied": counters.copied_bytes / plan.streamed_bytes / 3,
                "gathers": counters.gathers,
                "on_demand": counters.on_demand,
                "planned": plan.copied_bytes_per_forward / plan.streamed_bytes,
                "streamed": len(plan.streamed),
                "said": "copies its part of a streamed block" in report,
                "groups": len(dist.distributed_c10d._world.pg_map),
            }
        )
    return found


def experts(rank: int, mesh: DeviceMesh, device: str, folder: str) -> dict[str, Any]:
    """Two experts in turn, from memory and from files; the weights once, the slots shared."""
    from expert_pair import expected, expert, write_experts

    where = device_of("cpu") if device == "cpu" else linked(device)
    args = {"blocks_to_swap": 4, "prefetch_blocks": 1}
    if rank == 0:
        write_experts(Path(folder), "mini")
    dist.barrier()
    paths = [Path(folder) / f"mini-{number}.safetensors" for number in range(2)]
    found: dict[str, Any] = {}
    for source in ("memory", "file", "in file"):
        if source == "memory":
            models: Any = [expert(number, "mini") for number in range(2)]
            blockswap.swap_experts(models, args, device=where, mesh=mesh)
        else:
            budget = {} if source == "file" else {"ram_budget": 0}
            models = blockswap.open_experts(
                paths,
                {**args, **budget},
                device=where,
                mesh=mesh,
                skeletons=[skeleton("mini") for _ in paths],
            )
        equal = []
        with torch.no_grad():
            for number in (0, 0, 1, 1, 0, 1):
                out = forward(models[number], "mini", where)
                equal.append(torch.equal(out, expected(number, "mini", where)))
        counters = [model.blockswap.measured().counters for model in models]
        plans = [model.blockswap.plan for model in models]
        found[source] = {
            "equal": equal,
            "gathers": [c.gathers for c in counters],
            "copied": [c.copied_bytes for c in counters],
            "planned": [plan.copied_bytes_per_forward for plan in plans],
            "slabs": [plan.streamed_bytes for plan in plans],
            "said": [s for c in models for s in c.blockswap.measured().sentences if "brings" in s],
        }
        for model in models:
            model.blockswap.close()
    return found


def on_accelerators(rank: int, mesh: DeviceMesh, pays: bool) -> dict[str, Any]:
    """Each rank on an accelerator of its own, in parts or not: for whoever has two of them."""
    where = own_accelerator(rank)
    RankRates.pay = lambda *_: pays  # type: ignore[method-assign]
    torch.manual_seed(7)
    model = Wide().requires_grad_(False)
    x = torch.linspace(-1, 1, 2048).reshape(2, 1024).to(where)
    with torch.no_grad():
        expected = copy.deepcopy(model).to(where)(x).cpu()
        with blockswap.swap_blocks(model, {"blocks_to_swap": 20}, device=where, mesh=mesh) as swap:
            before = swap.measured().counters
            outputs = [model(x).cpu() for _ in range(4)]
            after, plan = swap.measured().counters, swap.plan
            report = str(swap.report())
    return {
        "equal": [torch.equal(out, expected) for out in outputs],
        "gathers": after.gathers - before.gathers,
        "copied": after.copied_bytes - before.copied_bytes,
        "slabs": plan.streamed_bytes,
        "report": report,
    }
