"""A block has one swap: a second one of what holds it, is part of it or shares it is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.errors import StateError

ALL = BlockSwapArgs(blocks_to_swap=9)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Two(nn.Module):
    """An encoder and a decoder, each with blocks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Blocks(), Blocks()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


class Deep(nn.Module):
    """Blocks that are made of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Blocks() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


Pair = tuple[nn.Module, nn.Module]


def wrapped() -> Pair:
    inner = Blocks()
    return inner, nn.Sequential(inner)


def compiled_and_wrapped() -> Pair:
    inner = Blocks()
    return inner, torch.compile(nn.Sequential(inner), backend="eager")  # type: ignore[return-value]


def part() -> Pair:
    whole = Two()
    return whole, whole.encoder


def whole_of_a_part() -> Pair:
    whole = Two()
    return whole.decoder, whole


def inside_a_block() -> Pair:
    whole = Deep()
    return whole, whole.stages[0]


def the_same_blocks() -> Pair:
    first, second = Blocks(), Blocks()
    second.layers[1] = first.layers[2]
    return first, second


PAIRS = [wrapped, compiled_and_wrapped, part, whole_of_a_part, inside_a_block, the_same_blocks]


@pytest.mark.parametrize("make", PAIRS)
def test_a_second_swap_is_refused_and_the_first_goes_on(
    device: torch.device, make: Callable[[], Pair]
) -> None:
    first, second = make()
    x = torch.randn(2, 8)
    with torch.no_grad():
        wanted = first(x)
        with swap_blocks(first, ALL, device=device):
            with pytest.raises(
                StateError, match=r"shares blocks with a .* that is swapped already"
            ):
                swap_blocks(second, ALL, device=device)
            assert torch.equal(first(x.to(device)).cpu(), wanted)
        with swap_blocks(second, ALL, device=device):
            second(x.to(device))


def test_two_parts_of_one_model_are_swapped_each_by_itself(device: torch.device) -> None:
    whole = Two()
    x: Any = torch.randn(2, 8)
    with torch.no_grad():
        wanted = whole(x)
        with (
            swap_blocks(whole.encoder, ALL, device=device),
            swap_blocks(whole.decoder, ALL, device=device),
        ):
            assert torch.equal(whole(x.to(device)).cpu(), wanted)
