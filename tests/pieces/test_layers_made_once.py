"""Layers of other packs as they end: what they compute in pieces is what they compute whole."""

from collections.abc import Callable

import pytest
import torch

from blockswap.pieces.made_once import Keeping, made_once

F = torch.nn.functional
TOKENS, FEATURES = 12, 4


def _added_in_place(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = F.linear(x, layer.weight * 2)
    out += layer.bias
    return out


def _scaled_in_place(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, layer.weight * 2, layer.bias).mul_(3)


def _activated_in_place(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return F.relu(F.linear(x, layer.weight * 2, layer.bias), inplace=True)


def _written_in_part(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = F.linear(x, layer.weight * 2, layer.bias)
    out[..., 0] = 0
    return out


def _scaled(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, layer.weight * 2, layer.bias) * 3


def _by_a_loop(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return sum(F.linear(x, layer.weight * n) for n in range(3)) + layer.bias


def _plain(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, layer.weight * 2, layer.bias)


WAYS = (_added_in_place, _scaled_in_place, _activated_in_place, _written_in_part, _scaled)


class Layer(torch.nn.Linear):
    def __init__(self, way: Callable[..., torch.Tensor], features: int) -> None:
        super().__init__(FEATURES, features)
        self.way, self.calls = way, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.way(self, x)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("features", [6, 1])
@pytest.mark.parametrize("way", [*WAYS, _by_a_loop, _plain])
def test_a_layer_ends_as_it_ends(
    way: Callable[..., torch.Tensor], features: int, keeps: bool
) -> None:
    torch.manual_seed(0)
    layer = Layer(way, features)
    block, keeping = torch.nn.Sequential(layer), Keeping(allowed=keeps)
    x = torch.randn(1, TOKENS, FEATURES)
    with torch.no_grad():
        pieces = [*x.split(5, dim=1), x[:, :1]]
        expected = [layer(piece) for piece in pieces]
        layer.calls = 0
        with made_once(block, (1, TOKENS), keeping):
            for piece, whole in zip(pieces, expected, strict=True):
                assert torch.equal(layer(piece), whole)
        assert keeping.happened == (keeps and way is _plain)
        assert layer.calls == 1 if way is _plain and keeps else layer.calls >= len(pieces)


def test_an_interrupt_at_the_beginning_leaves_no_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    block = torch.nn.Sequential(*(Layer(_plain, FEATURES) for _ in range(3)))

    def interrupted() -> None:
        raise KeyboardInterrupt

    class Calls(dict[str, object]):
        """The attributes of the second layer, where Ctrl-C comes."""

        def __setitem__(self, name: str, value: object) -> None:
            super().__setitem__(name, value)
            interrupted()

    second = block[1]
    object.__setattr__(second, "__dict__", Calls(vars(second)))
    with pytest.raises(KeyboardInterrupt):
        with made_once(block, (1, TOKENS), Keeping()):
            pytest.fail("it began")
    assert not any("_call_impl" in vars(layer) for layer in block)
