"""Weights that outlive the run of their block: returned they are copied, kept they are told of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers.utils import ModelOutput

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.errors import StateError

DIM = 8


class Pair(NamedTuple):
    state: torch.Tensor
    more: Any


@dataclass(frozen=True)
class Value:
    state: torch.Tensor
    more: Any


@dataclass
class Answer(ModelOutput):
    state: torch.Tensor | None = None
    more: torch.Tensor | None = None


class Block(nn.Module):
    """`hands_on` says what is returned beside the state, from the block."""

    def __init__(self, hands_on: Callable[["Block", torch.Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.token = nn.Linear(DIM, DIM), nn.Parameter(torch.randn(1, DIM))
        self.hands_on = hands_on

    def forward(self, x: torch.Tensor) -> Any:
        return self.hands_on(self, self.linear(x))


class Chain(nn.Module):
    """Adds up what its blocks have returned, after the last one."""

    def __init__(self, hands_on: Callable[[Block, torch.Tensor], Any], more: Any) -> None:
        super().__init__()
        self.blocks, self._more = nn.ModuleList(Block(hands_on) for _ in range(5)), more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        returned = []
        for block in self.blocks:
            output = block(x)
            x, more = self._more(output)
            returned.append(more)
        return x + sum(returned[1:], returned[0])


def first_two(output: Any) -> Any:
    return output[0], output[1]


RETURNED: dict[str, tuple[Any, Any]] = {
    "a weight": (lambda b, x: (x, b.token), first_two),
    "a view": (lambda b, x: (x, b.linear.weight.t()[:1]), first_two),
    "an expanded view": (lambda b, x: (x, b.linear.bias.expand(3, -1)), first_two),
    "in a list": (lambda b, x: [x, b.token], first_two),
    "deep inside": (lambda b, x: (x, {"a": [(b.token,)]}), lambda o: (o[0], o[1]["a"][0][0])),
    "in a dictionary": (lambda b, x: {0: x, 1: b.token}, first_two),
    "in a named tuple": (lambda b, x: Pair(x, b.token), first_two),
    "in a frozen value": (lambda b, x: Value(x, b.token), lambda o: (o.state, o.more)),
    "in an output of transformers": (lambda b, x: Answer(x, b.token), lambda o: (o.state, o.more)),
    "beside one without memory": (lambda b, x: (x, b.token, torch.eye(2).to_sparse()), first_two),
    "alone": (lambda b, x: b.token.expand(3, -1), lambda o: (o, o)),
}


def made(hands_on: Any, more: Any = lambda o: (o, o)) -> Chain:
    torch.manual_seed(0)
    return Chain(hands_on, more).eval().requires_grad_(False)


def run(model: nn.Module, device: torch.device) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        output: torch.Tensor = model(torch.randn(3, DIM, generator=draw).to(device)).cpu()
    return output


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("name", RETURNED)
def test_what_a_block_returns_of_its_weights_is_a_copy(
    name: str, prefetch: int, sim_device: torch.device
) -> None:
    expected = run(made(*RETURNED[name]).to(sim_device), sim_device)
    model = made(*RETURNED[name])
    args = BlockSwapArgs(blocks_to_swap=5, prefetch_blocks=prefetch)
    with swap_blocks(model, args, device=sim_device) as swap:
        for _ in range(3):
            assert torch.equal(run(model, sim_device), expected)
        assert "is kept by other code" not in swap.report().text()


def test_a_block_returns_the_kind_of_value_that_it_did(sim_device: torch.device) -> None:
    model = made(lambda b, x: Pair(x, b.token), first_two)
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=5), device=sim_device), torch.no_grad():
        output = model.blocks[1](torch.ones(3, DIM, device=sim_device))
    assert type(output) is Pair
    assert type(output.more) is nn.Parameter


def keeps(block: Block, x: torch.Tensor, kept: Any) -> torch.Tensor:
    """As modules do that make something of their weight once."""
    ring: list[Any] = []
    ring.append(ring)  # what contains itself is looked through, too
    vars(block).setdefault("a_ring", ring)
    vars(block).setdefault("made_of_it", kept)
    return x


KEPT: dict[str, Any] = {
    "a weight": lambda b, x: keeps(b, x, b.token),
    "a view": lambda b, x: keeps(b, x, b.linear.weight.t()),
    "in a list": lambda b, x: keeps(b, x, [b.token]),
    "in a dictionary": lambda b, x: keeps(b, x, {"token": b.token[0]}),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_block_that_keeps_one_is_refused(name: str, sim_device: torch.device) -> None:
    model = made(KEPT[name])
    with swap_blocks(model, BlockSwapArgs(blocks="1-3"), device=sim_device):
        for _ in range(2):
            with pytest.raises(StateError, match=r"blocks\.1 keeps a weight.* in its made_of_it"):
                run(model, sim_device)
    for block in model.blocks:
        vars(block).pop("made_of_it", None)
    assert torch.equal(run(model, torch.device("cpu")), run(made(KEPT[name]), torch.device("cpu")))


def test_somebody_else_who_keeps_one_is_told_of(sim_device: torch.device) -> None:
    model, kept = made(lambda b, x: x), []
    expected = run(made(lambda b, x: x).to(sim_device), sim_device)
    for block in model.blocks:
        block.linear.register_forward_hook(lambda layer, *_: kept.append(layer.weight))
    with swap_blocks(model, BlockSwapArgs(blocks="1-3"), device=sim_device) as swap:
        for _ in range(2):
            assert torch.equal(run(model, sim_device), expected)
        told = [s for s in swap.report().text().splitlines() if "is kept by other code" in s]
    assert len(told) == 1
    assert "a weight of blocks.1" in told[0]


def circle(block: Block, x: torch.Tensor) -> torch.Tensor:
    """What waits in a circle for Python's collector is kept by nobody."""
    ring: list[Any] = [block.token]
    ring.append(ring)
    return x


def test_nobody_is_accused_of_garbage(sim_device: torch.device) -> None:
    model = made(circle)
    with swap_blocks(model, BlockSwapArgs(blocks="1-3"), device=sim_device) as swap:
        for _ in range(2):
            run(model, sim_device)
        assert "is kept by other code" not in swap.report().text()


def test_a_keeper_is_found_after_a_false_alarm(sim_device: torch.device) -> None:
    model = made(circle)
    with swap_blocks(model, BlockSwapArgs(blocks="1-3"), device=sim_device):
        run(model, sim_device)
        for block in model.blocks:
            block.hands_on = KEPT["a view"]
        with pytest.raises(StateError, match=r"blocks\.1 keeps a weight.* in its made_of_it"):
            run(model, sim_device)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(DIM, DIM, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.rnn(x)[0]
        return output


def test_torchs_recurrent_layers_keep_theirs_until_others_hang(sim_device: torch.device) -> None:
    """They hold a list of them beside their parameters, and make it anew for those of a slot."""

    def made_of() -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Sequential(*(Recurrent() for _ in range(5)))
        return nn.Sequential(nn.Identity(), layers).eval().requires_grad_(False)

    expected = run(made_of().to(sim_device), sim_device)
    model = made_of()
    args = BlockSwapArgs(blocks_to_swap=3, prefetch_blocks=0, block_lists=("1",))
    with swap_blocks(model, args, device=sim_device) as swap:
        for _ in range(3):
            assert torch.equal(run(model, sim_device), expected)
        assert "is kept by other code" not in swap.report().text()


def test_a_block_that_returns_one_and_keeps_it_is_refused(sim_device: torch.device) -> None:
    def both(block: Block, x: torch.Tensor) -> Any:
        return keeps(block, x, block.token), block.token

    model = made(both, first_two)
    with swap_blocks(model, BlockSwapArgs(blocks="1-3"), device=sim_device):
        with pytest.raises(StateError, match=r"blocks\.1 keeps a weight.* in its made_of_it"):
            run(model, sim_device)
