"""The stand-in of the wrapper pack in this process: its models, with block swap and without."""

import importlib
from typing import Any

import torch

from blockswap import BlockSwapArgs
from blockswap.nodes.swap_node import BlockSwapNode
from blockswap.nodes.wrapper.pack import takeover_on

NAME = "wrapper_stand_in"
BLOCKS = 6


def part(name: str) -> Any:
    return importlib.import_module(f"{NAME}.{name}")


def model(kind: str = "plain") -> Any:
    (patcher,) = part("nodes_model_loading").WanVideoModelLoader().load(kind)
    return with_lora(patcher) if "lora" in kind else patcher


def with_lora(patcher: Any) -> Any:
    clone = patcher.clone()
    draw, dim = torch.Generator().manual_seed(5), part("wanvideo.modules.model").DIM
    for number in range(BLOCKS):
        pair = (torch.randn(dim, 2, generator=draw), torch.randn(2, dim, generator=draw))
        clone.patches[f"blocks.{number}.q.weight"] = [pair]
    return clone


def sample(patcher: Any, **options: Any) -> torch.Tensor:
    latents: torch.Tensor = part("nodes_sampler").sample(patcher, **options)
    assert torch.isfinite(latents).all()
    return latents


def swapped(patcher: Any, **asked: Any) -> Any:
    (clone,) = BlockSwapNode.execute(patcher, BlockSwapArgs(**asked).to_mapping()).result
    return clone


def streamed(patcher: Any) -> tuple[str, ...]:
    """The units that were brought to the device in the last run."""
    takeover = takeover_on(patcher)
    assert takeover is not None
    assert takeover.swap is not None
    assert takeover.swap.closed
    return tuple(sorted({v.unit for v in takeover.swap.measured().visits if v.tier != "resident"}))


def own_moves(patcher: Any) -> list[Any]:
    """What the pack's own loop has moved."""
    return list(patcher.model.diffusion_model.moved)


def names(*blocks: int) -> tuple[str, ...]:
    return tuple(f"blocks.{number}" for number in blocks)
