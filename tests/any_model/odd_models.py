"""Models that nobody has published, each different from Wan in one way that must not matter."""

from collections.abc import Callable

import torch
from odder_models import ODDER
from stranger_models import STRANGER
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

DIM = 16


class Wide(nn.Module):
    """Takes two streams and a table by keyword, and returns a tuple of both."""

    def __init__(self, hidden: int = 48) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(2 * DIM, hidden), nn.Linear(hidden, 2 * DIM)

    def forward(self, a: torch.Tensor, *, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = self.down(torch.tanh(self.up(torch.cat([a, b], -1))))
        return a + both[..., :DIM], b + both[..., DIM:]


class Narrow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(DIM, 24), nn.GELU(), nn.Linear(24, DIM))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x": x + self.inner(x)}


class Experts(nn.Module):
    """A mixture: one of four experts computes, chosen by the input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.experts = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = int(x.sum().abs() * 10) % 4
        return x + self.experts[chosen](self.norm(x))


class Remembering(nn.Module):
    """Attends to what earlier forwards left; the model keeps it, not the block."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM)

    def forward(self, x: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
        kept.append(self.kv(x))
        keys, values = torch.cat(kept, -2).chunk(2, -1)
        return x + torch.softmax(self.q(x) @ keys.transpose(-1, -2), -1) @ values


class TwoLists(nn.Module):
    """Lists with names of its own at different depths, run in another order than defined."""

    def __init__(self) -> None:
        super().__init__()
        self.zweite = nn.ModuleList(Narrow() for _ in range(4))
        self.inside = nn.Module()
        self.inside.erste = nn.ModuleList([Wide(), Wide(96), Wide()])
        self.never = nn.ModuleList(Narrow() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x, x.flip(-1)
        for block in (*self.inside.erste, self.inside.erste[0]):
            a, b = block(a, b=b)
        x = a * b
        for block in self.zweite:
            x = block(x)["x"]
        return x


class Tied(nn.Module):
    """A table that is read at the start and multiplied with at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, DIM)
        self.layers = nn.Sequential(*[Experts() for _ in range(5)])
        self.head = nn.Linear(DIM, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = (x.abs().sum(-1) * 7).long() % 5
        return self.head(self.layers(x + self.table(ids)))


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.ModuleList(Remembering() for _ in range(4))
        self.kept: list[list[torch.Tensor]] = [[] for _ in range(4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, kept in zip(self.stack, self.kept, strict=True):
            x = block(x, kept)
        return x


class Checkpointed(nn.Module):
    """Runs its blocks under activation checkpointing, grad on or not."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Narrow() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.steps:
            x = checkpoint(block, x, use_reentrant=False)["x"]
        return x


class Pairs(nn.Module):
    """A list of lists, an attention and an MLP each."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.ModuleList(nn.ModuleList([Experts(), Narrow()]) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for first, second in self.rows:
            x = second(first(x))["x"]
        return x


class Stages(nn.Module):
    """Stages of layers; only the layers are called what repeats."""

    _no_split_modules = ["Experts", "LayerNorm"]

    def __init__(self) -> None:
        super().__init__()
        stage = [nn.Sequential(*[Experts() for _ in range(3)]) for _ in range(2)]
        self.stages = nn.ModuleList(stage)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = F.silu(stage(x))
        return x


class Wrapped(nn.Module):
    """Another model inside, whose blocks were compiled each by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.wrapped = TwoLists()
        for place, block in enumerate(self.wrapped.zweite):
            self.wrapped.zweite[place] = torch.compile(block, backend="eager")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wrapped(x)


# The model, and how many units each of its lists has.
ODD: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "two lists": (TwoLists, {"zweite": 4, "inside.erste": 3, "never": 2}),
    "tied table, experts": (Tied, {"layers": 5}),
    "kept keys": (Causal, {"stack": 4}),
    "checkpointing": (Checkpointed, {"steps": 4}),
    "pairs": (Pairs, {"rows.0": 2, "rows.1": 2, "rows.2": 2}),
    "stages": (Stages, {"stages.0": 3, "stages.1": 3}),
    "wrapped": (Wrapped, {"wrapped.zweite": 4, "wrapped.inside.erste": 3, "wrapped.never": 2}),
}


ODD.update(ODDER)
ODD.update(STRANGER)


def odd(name: str) -> nn.Module:
    torch.manual_seed(5)
    return ODD[name][0]().eval().requires_grad_(False)
