"""Weights of a block as plain tensors, and hanging others in their place."""

from collections.abc import Sequence

import torch


def tensors_of(block: torch.nn.Module) -> list[torch.Tensor]:
    """The block's weights in order, whatever memory they are in."""
    return [weight.detach() for weight in block.parameters()]


def hang(block: torch.nn.Module, tensors: Sequence[torch.Tensor]) -> None:
    """Makes `tensors` the block's weights."""
    for name, tensor in zip(list(block._parameters), tensors, strict=True):
        block._parameters[name] = torch.nn.Parameter(tensor, requires_grad=False)


def hang_on_device(block: torch.nn.Module) -> None:
    """Makes the block resident."""
    hang(block, [tensor.to("sim") for tensor in tensors_of(block)])


def hang_pinned(block: torch.nn.Module) -> list[torch.Tensor]:
    """Moves the block's weights to pinned memory; returns them."""
    pinned = [tensor.pin_memory() for tensor in tensors_of(block)]
    hang(block, pinned)
    return pinned
