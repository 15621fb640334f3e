"""More models that nobody has published: other containers, sharing, threads and outputs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

DIM = 16


@dataclass
class State:
    hidden: torch.Tensor
    skipped: torch.Tensor | None = None


class Step(NamedTuple):
    hidden: torch.Tensor
    count: int


class ByKeyword(nn.Module):
    """Nothing by place, and a dataclass comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(DIM, DIM) / 4) for _ in range(2))
        self.scales = nn.ParameterDict({"a": nn.Parameter(torch.ones(DIM))})

    def forward(self, *, state: State) -> State:
        first, second = self.weights
        hidden = torch.tanh(state.hidden @ first) @ second * self.scales["a"]
        return State(hidden=state.hidden + hidden, skipped=state.hidden)


class Dictionary(nn.Module):
    """Blocks by name, run in another order than they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict({name: ByKeyword() for name in ("out", "middle", "in", "x")})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = State(x)
        for name in ("in", "middle", "out", "x"):
            state = self.by_name[name](state=state)
        assert state.skipped is not None
        return state.hidden - state.skipped


class WithShared(nn.Module):
    """A layer that all blocks have, and a weight that is every other column of a larger one."""

    def __init__(self, shared: nn.Module, large: torch.Tensor) -> None:
        super().__init__()
        self.shared = shared
        self.own = nn.Parameter(large[:, ::2])
        self.norm = nn.LayerNorm(DIM)
        self.wide = nn.Linear(DIM, 6 * DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.wide(self.norm(x)).chunk(6, -1)
        return x + self.shared(wide[0] * wide[5]) @ self.own


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(DIM, DIM)
        self.chain = nn.ModuleList(
            WithShared(shared, torch.randn(DIM, 2 * DIM) / 8) for _ in range(5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return reduce(lambda state, block: block(state), self.chain, x)


class Outside(nn.Module):
    """A part of one block hangs outside of it, too, and runs there."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.ModuleList(Layer() for _ in range(4))
        self.first = self.chain[2][0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x)[..., ::2]
        for block in self.chain:
            x = x + block(x)
        return x


class Counting(nn.Module):
    """Counts its runs in a buffer, and returns a named tuple."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(DIM, hidden), nn.Linear(hidden, DIM)
        self.register_buffer("runs", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(DIM), persistent=False)
        self.empty = nn.Parameter(torch.zeros(0, DIM))

    def forward(self, x: torch.Tensor, step: int) -> Step:
        self.runs += 1
        self.mean.lerp_(x.mean(0), 0.5)
        hidden = self.down(torch.relu(self.up(x - self.mean))) / self.runs
        return Step(x + hidden + self.empty.sum(), step + 1)


class Deep(nn.Module):
    """Lists in lists in lists; the innermost members count."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(Counting(40 + 8 * k) for k in range(2)) for _ in range(2))
            for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = Step(x, 0)
        for branch in self.tree:
            for twigs in branch:
                for leaf in twigs:
                    step = leaf(step.hidden, step=step.count)
        return step.hidden


class Layer(nn.Sequential):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(nn.Linear(DIM, 2 * DIM), nn.SiLU(), nn.Linear(2 * DIM, DIM))
        self.to(dtype)


class Skips(nn.Module):
    """Down and up with what was skipped between, the way up in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(Layer() for _ in range(3))
        self.bottom = nn.Identity()
        self.up = nn.ModuleList(Layer(torch.float64) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for layer in self.down:
            kept.append(x)
            x = x + layer(x)
        x = self.bottom(x).double()
        for layer in reversed(self.up):
            x = layer(x) + kept.pop()
        return x.float()


class Threads(nn.Module):
    """Each forward hands its blocks to a worker thread, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.work = nn.ModuleList(Layer() for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grad = torch.is_grad_enabled()

        def run(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
            with torch.set_grad_enabled(grad):
                return x + block(x)

        with ThreadPoolExecutor(1) as pool:
            for block in self.work:
                x = pool.submit(run, block, x).result()
        return x


class Parametrised(nn.Module):
    """Weights that are computed from others (weight norm), under reentrant checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(Layer() for _ in range(4))
        for cell in self.cells:
            parametrizations.weight_norm(cell[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for cell in self.cells:
            x = x + checkpoint(cell, x, use_reentrant=True)
        return x


class Complex(nn.Module):
    """Mixes frequencies with complex weights, and calls itself for the other half of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(Mixer() for _ in range(4))

    def forward(self, x: torch.Tensor, start: int = 0) -> torch.Tensor:
        for mixer in self.mixers[start::2]:
            x = mixer(x)
        return x if start else self.half(x)

    def half(self, x: torch.Tensor) -> torch.Tensor:
        for mixer in self.mixers[1::2]:
            x = mixer(x)
        return x


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        size = DIM // 2 + 1
        self.weight = nn.Parameter(torch.randn(size, size, dtype=torch.complex64) / 3)
        self.gate = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gate * torch.fft.irfft(torch.fft.rfft(x) @ self.weight, n=DIM)


# The model, and how many units each of its lists has.
ODDER: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "by name": (Dictionary, {"by_name": 4}),
    "shared layer": (Shared, {"chain": 5}),
    "part outside": (Outside, {"chain": 4}),
    "deep lists": (Deep, {f"tree.{i}.{j}": 2 for i in range(2) for j in range(2)}),
    "skips": (Skips, {"down": 3, "up": 3}),
    "worker thread": (Threads, {"work": 5}),
    "parametrised": (Parametrised, {"cells": 4}),
    "complex": (Complex, {"mixers": 4}),
}
