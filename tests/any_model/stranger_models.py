"""Models that nobody has published: blocks that are reached, called or changed in unusual ways."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

DIM = 16


class Block(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(DIM),
            nn.Linear(DIM, width),
            nn.Linear(width, DIM),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class AsOne(nn.Module):
    """Two runs of blocks, each called as the one Sequential that it is."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(*(Block() for _ in range(4)))
        self.back = nn.Sequential(*(Block() for _ in range(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.back(self.front(x)[:, :])


class Backwards(nn.Module):
    """Its list from the end, by negative places and by a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place in range(1, 4):
            x = self.layers[-place](x)
        for layer in self.layers[:3][::-1]:
            x = layer(x)
        return x


class ByPosition(nn.Module):
    """A plain dict from places to bound calls; torch knows the list alone."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(Block() for _ in range(5))
        self.calls: dict[int, Any] = {place: cell for place, cell in enumerate(self.cells)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place in (0, 3, 1, 4, 2):
            x = self.calls[place](x)
        return x


class Cached(nn.Module):
    """Takes whatever is given by place, and leaves keys and values in a dict of its caller's."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place, self.q, self.kv = place, nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM)

    def forward(self, x: torch.Tensor, *more: Any) -> tuple[Any, ...]:
        caches, scale = more
        key, value = self.kv(x).chunk(2, -1)
        kept = caches.setdefault(self.place, {"k": [], "v": []})
        kept["k"].append(key)
        kept["v"].append(value)
        scores = self.q(x) @ torch.cat(kept["k"]).T * scale
        return (x + torch.softmax(scores, -1) @ torch.cat(kept["v"]), *more)


class KeyValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.ModuleList(Cached(place) for place in range(4))
        self.caches: dict[int, dict[str, list[torch.Tensor]]] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given: tuple[Any, ...] = (x, self.caches, 0.25)
        for block in self.stack:
            given = block(*given)
        return given[0]


class Moving(nn.Module):
    """Keeps a mean of what it saw in buffers, in place and replaced, one of them not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Block()
        self.register_buffer("mean", torch.zeros(DIM))
        self.register_buffer("last", torch.zeros(DIM), persistent=False)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        x = self.inner(x) + self.mean + self.last
        self.last = x.mean(0)
        self.seen += 1
        return x / self.seen


class Averaging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Moving() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return x


class TiedHead(nn.Module):
    """The last block's weight is the head's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleList(Block(DIM) for _ in range(5))
        self.head = nn.Linear(DIM, DIM)
        self.head.weight = self.trunk[4].down.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.trunk:
            x = block(x)
        return self.head(x)


class Interleaved(nn.Module):
    """A block of one list, then one of the other, which is as long again."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.ModuleList(Block() for _ in range(3))
        self.temporal = nn.ModuleList(Block(48) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place, block in enumerate(self.temporal):
            x = block(self.spatial[place // 2](x) if place % 2 == 0 else x)
        return x


class Later(nn.Module):
    """One of its lists runs from the second forward on."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.ModuleList(Block() for _ in range(3))
        self.then = nn.ModuleList(Block() for _ in range(3))
        self.count = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lists = [self.always] if self.count == 0 else [self.then, self.always]
        self.count += 1
        for blocks in lists:
            for block in blocks:
                x = block(x)
        return x


class Partial(nn.Module):
    """Calls made ahead with functools.partial, and stretches of a checkpointed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(Block() for _ in range(3))
        self.second = nn.Sequential(*(Block() for _ in range(4)))
        self.ready = [partial(block) for block in self.first]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for call in self.ready:
            x = call(x)
        return checkpoint_sequential(self.second, 2, x, use_reentrant=False)


class Answering(nn.Module):
    """Answers for what it wraps, as adapters do: names that it has not are looked for inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.up(self.norm(x)).mean(-1, keepdim=True)


class Asked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rooms = nn.ModuleList(Answering(Block()) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for room in self.rooms:
            x = room(x)
        return x


class Replaced(nn.Module):
    """Each block's forward is another function than its class's, set on the instance."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(5))
        for place, block in enumerate(self.blocks):
            block.forward = partial(self.instead, block, place, block.forward)

    @staticmethod
    def instead(block: Any, place: int, original: Any, x: torch.Tensor) -> torch.Tensor:
        return original(x) if place % 2 else x - block.down(torch.relu(block.up(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


# The model, and how many units each of its lists has.
STRANGER: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "run as one": (AsOne, {"front": 4, "back": 3}),
    "backwards": (Backwards, {"layers": 6}),
    "by position": (ByPosition, {"cells": 5}),
    "cache by place": (KeyValues, {"stack": 4}),
    "moving buffers": (Averaging, {"steps": 4}),
    "tied to the head": (TiedHead, {"trunk": 5}),
    "interleaved": (Interleaved, {"spatial": 3, "temporal": 6}),
    "later": (Later, {"always": 3, "then": 3}),
    "partial": (Partial, {"first": 3, "second": 4}),
    "answering": (Asked, {"rooms": 4}),
    "replaced forward": (Replaced, {"blocks": 5}),
}
