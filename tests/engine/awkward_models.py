"""Small models, each awkward in one way that real checkpoints and quantisers are awkward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

DIM = 16


class AwkwardModel(nn.Module):
    """A patch embedding, `blocks`, a head; what is awkward is in the blocks."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(4, DIM)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(DIM, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, 4]` -> `[batch, 4]`."""
        x = self.patch_embedding(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class UnequalBlock(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(DIM, hidden), nn.Tanh(), nn.Linear(hidden, DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class TiedBlock(nn.Module):
    """The same parameter under three names, two of them in one submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.b.weight = self.a.weight
        self.again = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x))) + F.linear(x, self.again)


class SharingBlock(nn.Module):
    """Uses a parameter that hangs in another block as well."""

    def __init__(self, shared: nn.Parameter) -> None:
        super().__init__()
        self.own = nn.Linear(DIM, DIM)
        self.shared = shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(F.linear(x, self.shared))


class ViewsBlock(nn.Module):
    """q, k and v are three views of one storage."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.randn(3 * DIM, DIM) / 4
        self.q, self.k, self.v = (nn.Parameter(part) for part in whole.chunk(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.q) * torch.tanh(F.linear(x, self.k)) + F.linear(x, self.v)


class OverlappingViewsBlock(nn.Module):
    """Two parameters over the same bytes: one a whole, one a part of it."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.randn(2 * DIM, DIM) / 4
        self.whole, self.part = nn.Parameter(whole), nn.Parameter(whole[:DIM])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.whole)[..., :DIM] + F.linear(x, self.part)


class TransposedBlock(nn.Module):
    """Weights that are dense but not row-major: a transpose, and channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.Parameter((torch.randn(DIM, 2 * DIM) / 4).t())
        conv = torch.randn(DIM, DIM, 3, 3) / 8
        self.conv = nn.Parameter(conv.to(memory_format=torch.channels_last))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.turned)[..., :DIM]
        return F.conv2d(y[:, :, None, None], self.conv, padding=1)[:, :, 0, 0]


class EmptyAndScalarBlock(nn.Module):
    """An empty parameter, one without dimensions, and one slot that is None."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(DIM, DIM, bias=False)
        self.empty = nn.Parameter(torch.empty(0, DIM))
        self.gate = nn.Parameter(torch.tensor(0.75))
        self.register_parameter("nothing", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.gate + F.linear(x, self.empty).sum()


class CountingBlock(nn.Module):
    """Changes a buffer in every forward and uses it in the next."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(DIM, DIM)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
        return self.inner(x - self.mean) / self.seen


class RebindingBlock(nn.Module):
    """Puts a new tensor in place of its buffer in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(DIM, DIM)
        self.register_buffer("last", torch.zeros(DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x + self.last)
        self.last = y.mean(0)
        return y


class HiddenBufferBlock(nn.Module):
    """A buffer that no state dict shows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(DIM, DIM)
        self.register_buffer("table", torch.linspace(-1, 1, DIM), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.table


class ComplexBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(DIM, DIM)
        self.turn = nn.Parameter(torch.polar(torch.ones(DIM // 2), torch.randn(DIM // 2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(self.inner(x).unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.turn).flatten(-2)


class StoredSmallBlock(nn.Module):
    """Weights in a small type beside a scale in float32, cast where they are used."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        weight = torch.randn(DIM, DIM) * (20 if dtype is torch.int8 else 1)
        self.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(0.05))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(torch.float32) * self.scale)


class ScaledInt8(torch.Tensor):
    """A quantised weight: `data8` int8 and `scale` float32, one a row. Acts as float32."""

    data8: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, data8: torch.Tensor, scale: torch.Tensor) -> "ScaledInt8":
        return torch.Tensor._make_wrapper_subclass(
            cls, data8.shape, dtype=torch.float32, device=data8.device, requires_grad=False
        )

    def __init__(self, data8: torch.Tensor, scale: torch.Tensor) -> None:
        self.data8, self.scale = data8, scale

    @classmethod
    def of(cls, weight: torch.Tensor) -> "ScaledInt8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def float32(self) -> torch.Tensor:
        return self.data8.to(torch.float32) * self.scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["data8", "scale"], None

    @staticmethod
    def __tensor_unflatten__(
        parts: dict[str, torch.Tensor], context: None, shape: object, stride: object
    ) -> "ScaledInt8":
        return ScaledInt8(parts["data8"], parts["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        aten = torch.ops.aten
        if func in (aten.detach.default, aten.clone.default, aten._to_copy.default):
            own = args[0]
            device = {"device": kwargs["device"]} if kwargs.get("device") is not None else {}
            keep = aten._to_copy.default if device else func
            return cls(keep(own.data8, **device), keep(own.scale, **device))
        args, kwargs = pytree.tree_map_only(cls, lambda t: t.float32(), (args, kwargs))
        return func(*args, **kwargs)


class WrappedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(DIM, DIM)
        weight = ScaledInt8.of(self.inner.weight.detach())
        self.inner.weight = nn.Parameter(weight, requires_grad=False)
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.norm(x))


def _sharing() -> list[nn.Module]:
    shared = nn.Parameter(torch.randn(DIM, DIM) / 4)
    return [SharingBlock(shared), UnequalBlock(8), SharingBlock(shared)]


def _twice() -> list[nn.Module]:
    first, second = UnequalBlock(24), UnequalBlock(24)
    return [first, second, first]


AWKWARD: dict[str, Callable[[], list[nn.Module]]] = {
    "unequal blocks": lambda: [UnequalBlock(hidden) for hidden in (8, 200, 24, 1)],
    "tied parameters in a block": lambda: [TiedBlock() for _ in range(4)],
    "a tensor shared between blocks": _sharing,
    "views of one storage": lambda: [ViewsBlock() for _ in range(4)],
    "overlapping views": lambda: [OverlappingViewsBlock() for _ in range(3)],
    "transposed weights": lambda: [TransposedBlock() for _ in range(3)],
    "empty and scalar parameters": lambda: [EmptyAndScalarBlock() for _ in range(4)],
    "a buffer changed in forward": lambda: [CountingBlock() for _ in range(3)],
    "a buffer replaced in forward": lambda: [RebindingBlock() for _ in range(3)],
    "a buffer that is not saved": lambda: [HiddenBufferBlock() for _ in range(3)],
    "complex weights": lambda: [ComplexBlock() for _ in range(3)],
    "int8 weights": lambda: [StoredSmallBlock(torch.int8) for _ in range(4)],
    "fp8 weights": lambda: [StoredSmallBlock(torch.float8_e4m3fn) for _ in range(4)],
    "a wrapper tensor subclass": lambda: [WrappedBlock() for _ in range(4)],
    "a block listed twice": _twice,
    "a block without parameters": lambda: [UnequalBlock(8), nn.Tanh(), UnequalBlock(8)],
    "a single block": lambda: [UnequalBlock(8)],
}


def awkward(name: str) -> AwkwardModel:
    """The model; equal weights every time."""
    torch.manual_seed(7)
    return AwkwardModel(AWKWARD[name]()).eval()
