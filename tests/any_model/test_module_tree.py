"""What of a live model counts as one operation: torch's layers, hosts' own ones, wrapped ones."""

import pytest
import torch
from torch import nn

from blockswap.adapters.families import unit_modules


class HostLinear(nn.Linear):
    """As ComfyUI, GGUF packs and quantisers have: torch's layer under a class of their own."""


class Wrapped(nn.Module):
    """As PEFT hangs what it adds beside the layer that it wraps."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x)  # type: ignore[no-any-return]


def parametrized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))


MAKERS = {
    "torch": lambda: nn.Linear(8, 8),
    "host": lambda: HostLinear(8, 8),
    "wrapped": lambda: Wrapped(nn.Linear(8, 8)),
    "wrapped host": lambda: Wrapped(HostLinear(8, 8)),
    "parametrized": parametrized,
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("lists", [("blocks", "text_embedding"), ("stack", "before")])
def test_a_sequence_of_layers_is_no_list_of_blocks_whoever_made_them(
    kind: str, lists: tuple[str, str]
) -> None:
    """Known names (Wan's) or any others: an embedder in front of the blocks is none of them."""
    model, make = nn.Module(), MAKERS[kind]
    stack, before = lists
    model.add_module(before, nn.Sequential(make(), nn.GELU(), make()))
    model.add_module(stack, nn.ModuleList(Block() for _ in range(4)))
    blocks = [unit.name for unit in unit_modules(model) if unit.kind == "block"]
    assert blocks == [f"{stack}.{i}" for i in range(4)]
