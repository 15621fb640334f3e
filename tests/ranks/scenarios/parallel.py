"""Models that a library runs on all ranks at once (Ulysses, ring, data), swapped or not."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import inputs
from torch.distributed.device_mesh import DeviceMesh

import blockswap
from blockswap.plan.timing.shared_link import RankRates

from .given import own_accelerator


def context_parallel(rank: int, mesh: DeviceMesh, folder: str, cases: Any) -> dict[str, list[bool]]:
    """diffusers' Ulysses or ring over all ranks, beside the unswapped model under the same.

    A case: the model, what is parallel, when it is switched on, args, and whether from a file.
    """
    # diffusers 0.42 divides by the number of accelerators when it sets up, and here is none.
    torch.accelerator.device_count = lambda: 1  # type: ignore[assignment]
    _ring_on_the_cpu()
    found = {}
    for kind, how, swapped, args, stored in cases:
        family = "diffusers" if kind == "diffusers" else "diffusers-vace"
        config = _parallel(how, mesh.size())
        with torch.no_grad():
            alone = _forward(_with_heads(kind), family, rank if config is None else 0)
            plain = _with_heads(kind)
            if config is not None:
                plain.enable_parallelism(config=config, cp_plan=_cuts(plain))
            unswapped = _forward(plain, family, rank if config is None else 0)
            model = _brought(kind, args, mesh, Path(folder) / kind) if stored else _with_heads(kind)
            if config is not None and swapped == "after" and not stored:
                model.enable_parallelism(config=config, cp_plan=_cuts(model))
            if not stored:
                blockswap.swap_blocks(model, args, device="cpu", mesh=mesh)
            if config is not None and (swapped == "before" or stored):
                model.enable_parallelism(config=config, cp_plan=_cuts(model))
            again = 2 if config is not None else 1 + rank  # data parallel: as many as each likes
            outputs = [_forward(model, family, rank if config is None else 0) for _ in range(again)]
            model.blockswap.close()
        name = f"{kind}, {how}, {swapped}, {args}, {stored}"
        found[name] = [torch.equal(out, unswapped) for out in outputs]
        if how != "ring":  # which merges chunks in another order
            found[name].append(torch.equal(unswapped, alone))
    return found


def _parallel(how: str, ranks: int) -> Any:
    from diffusers import ContextParallelConfig

    if how == "data":
        return None
    return ContextParallelConfig(**{f"{how}_degree": ranks})


def _cuts(model: Any) -> Any:
    """What is cut between ranks: as the class says, or for VACE, which says nothing, as Wan's does.

    A layer of VACE is given the whole hidden states, before the first block cuts them.
    """
    from diffusers import WanTransformer3DModel

    plan = WanTransformer3DModel._cp_plan
    layers = getattr(model, "vace_blocks", ())
    if not layers:
        return None
    cut = plan["blocks.0"]["hidden_states"]
    vace = {f"vace_blocks.{number}": {"hidden_states": cut} for number in range(len(layers))}
    vace["vace_blocks.0"]["control_hidden_states"] = cut
    return {**plan, **vace}


def parallel_experts(
    rank: int, mesh: DeviceMesh, folder: str, how: str, args: Any
) -> list[list[bool]]:
    """Two models in turn from their folders, under Ulysses or ring, beside unswapped ones."""
    torch.accelerator.device_count = lambda: 1  # type: ignore[assignment]
    _ring_on_the_cpu()
    paths = [Path(folder) / f"expert-{number}" for number in range(2)]
    plains = []
    for number, path in enumerate(paths):
        plain = _with_heads("diffusers", seed=number)
        if rank == 0:
            plain.save_pretrained(path)
        plain.enable_parallelism(config=_parallel(how, mesh.size()))
        plains.append(plain)
    dist.barrier()
    with torch.no_grad():
        wanted = [_forward(plain, "diffusers", 0) for plain in plains]
        models: Any = blockswap.open_experts(paths, args, device="cpu", mesh=mesh)
        for model in models:
            model.enable_parallelism(config=_parallel(how, mesh.size()))
        equal = [[torch.equal(_forward(models[number], "diffusers", 0), wanted[number])
                  for number in order] for order in ((0, 0, 1, 1), (0, 1))]  # fmt: skip
        gathers = [model.blockswap.measured().counters.gathers > 0 for model in models]
        for model in models:
            model.blockswap.close()
    return [*equal, gathers]


def beside_own_collectives(rank: int, mesh: DeviceMesh, folder: str) -> dict[str, Any]:
    """Ulysses on accelerators: gathers of blocks beside the collectives of the forward itself.

    From memory and from the file, each in parts; without accelerators on the CPU, for a try.
    """
    where = own_accelerator(rank)
    RankRates.pay = lambda *_: True  # type: ignore[method-assign]
    if where.type == "cpu":
        torch.accelerator.device_count = lambda: 1  # type: ignore[assignment]
    path, args = Path(folder) / "model", {"blocks_to_swap": 4, "prefetch_blocks": 1}
    if rank == 0:
        _with_heads("diffusers").save_pretrained(path)
    dist.barrier()
    found: dict[str, Any] = {}
    with torch.no_grad():
        plain = _with_heads("diffusers").to(where)
        plain.enable_parallelism(config=_parallel("ulysses", mesh.size()))
        wanted = _forward(plain, "diffusers", 0, where)
        for name, budget in (("memory", {}), ("file", {"ram_budget": 0})):
            model: Any = blockswap.open_transformer(path, args | budget, device=where, mesh=mesh)
            model.enable_parallelism(config=_parallel("ulysses", mesh.size()))
            outs = [_forward(model, "diffusers", 0, where) for _ in range(20)]
            swap = model.blockswap
            found[name] = {
                "equal": [torch.equal(out, wanted) for out in outs],
                "gathers": swap.measured().counters.gathers,
                "said": [s for s in swap.measured().sentences if "brings all of every" in s],
            }
            swap.close()
    return found


def _forward(
    model: Any, family: str, prompt: int, where: torch.device | None = None
) -> torch.Tensor:
    """Of one of several prompts."""
    given = inputs(family, where or torch.device("cpu"))
    given["encoder_hidden_states"] = given["encoder_hidden_states"] * (1 + prompt)
    out: torch.Tensor = model(**given, return_dict=False)[0]
    return out


def _brought(kind: str, args: Any, mesh: DeviceMesh, path: Path) -> Any:
    """The model of a folder that one rank has saved."""
    if mesh.get_rank() == 0:
        _with_heads(kind).save_pretrained(path)
    dist.barrier()
    return blockswap.open_transformer(path, args, device="cpu", mesh=mesh)


def _ring_on_the_cpu() -> None:
    """Ring attention wants the logarithms of the sums, which diffusers does not give on the CPU."""
    from diffusers.models import attention_dispatch

    plain = attention_dispatch._native_attention_forward_op

    def with_sums(ctx: Any, query: Any, key: Any, value: Any, *given: Any, **named: Any) -> Any:
        if len(given) < 6 or not given[5]:
            return plain(ctx, query, key, value, *given, **named)
        turned = [x.permute(0, 2, 1, 3) for x in (query, key, value)]
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, sums = attend(*turned, scale=given[3])
        return out.permute(0, 2, 1, 3), sums.permute(0, 2, 1)

    attention_dispatch._native_attention_forward_op = with_sums


def _with_heads(kind: str, seed: int = 3) -> Any:
    """A model whose heads and tokens four ranks can share."""
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    sizes: Any = dict(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=96,
        num_layers=6,
    )
    torch.manual_seed(seed)
    if kind == "diffusers":
        return WanTransformer3DModel(**sizes).eval()
    return WanVACETransformer3DModel(**sizes, vace_layers=[0, 2, 4], vace_in_channels=8).eval()
