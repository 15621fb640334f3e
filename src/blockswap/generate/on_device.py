"""How a model takes its turn on the device: there in one piece, or with its units streamed."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..selection import BlockSwapArgs
from ..stream.device import open_device
from ..swap import open_text_encoder, swap_blocks
from .parts.components import Part


@contextmanager
def turn_of_encoder(part: Part, device: torch.device, args: BlockSwapArgs) -> Iterator[Any]:
    """A text encoder of the library runs on `device` inside, streamed from its own files.

    Raises what `open_text_encoder` raises.
    """
    model: Any = open_text_encoder(part.path, args, device=device)
    try:
        yield model
    finally:
        model.blockswap.close()
        settle(device)


@contextmanager
def turn_of(
    model: torch.nn.Module, device: torch.device, *, budget: int | None, activation_bytes: int
) -> Iterator[torch.nn.Module]:
    """`model` runs on `device` inside; afterwards it has no weights any more.

    It lies there whole where `budget` holds it and `activation_bytes`; else its blocks are
    streamed. Raises ModelError where it must be streamed and has no list of blocks.
    """
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    if device.type == "cpu" or budget is None or weights + activation_bytes <= budget:
        try:
            yield model.to(device)
        finally:
            leave(model, device)
        return
    room = budget - activation_bytes
    with swap_blocks(model, BlockSwapArgs(vram_budget=max(0, room)), device=device):
        yield model
    leave(model, device)


def leave(model: torch.nn.Module, device: torch.device) -> None:
    """Takes the model's weights from wherever they are, and gives cached memory back."""
    for place in model.modules():
        tables: tuple[Any, ...] = (place._parameters, place._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None and tensor.device.type != "meta":
                    table[name] = _emptied(tensor)
    settle(device)


def settle(device: torch.device) -> None:
    """What is no longer referred to is given back before the next model comes."""
    gc.collect()
    where = open_device(device)
    where.synchronize()
    where.empty_cache()


def _emptied(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(empty, requires_grad=False)
    return empty
