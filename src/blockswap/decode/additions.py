"""What an adapter adds to a weight: low rank, LoHa, LoKr or a difference, made in fp32.

Each follows the arithmetic of PEFT's `get_delta_weight` of a model in fp32, operation by operation,
with `out=` in place of PEFT's new tensors: a visit allocates nothing, and autocast, which leaves
calls with `out=` alone, changes nothing. Stored factors of any float dtype are widened first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

Shape = tuple[int, ...]
Run = Callable[[], None]


@dataclass(slots=True)
class Strength:
    """How strongly an adapter's file is added: read at every run, so it may be changed between."""

    value: float


@dataclass(frozen=True, slots=True)
class Scale:
    """What an addition is multiplied by: `strength * alpha / divisor`, in PEFT's order."""

    strength: Strength
    alpha: float = 1.0
    divisor: float = 1.0

    @property
    def value(self) -> float:
        return self.strength.value * self.alpha / self.divisor


class Addition(Protocol):
    """What is added to a weight. A value: it holds no memory.

    `takes` arrays of the adapter's file are its own; `work` are the shapes of the fp32 arrays that
    it needs beside its result; `flops` what one run computes.
    """

    @property
    def takes(self) -> int: ...

    @property
    def work(self) -> tuple[Shape, ...]: ...

    @property
    def flops(self) -> int: ...

    def prepare(
        self, stored: Sequence[torch.Tensor], delta: torch.Tensor, work: Sequence[torch.Tensor]
    ) -> Run:
        """What writes the addition into `delta`, fp32 and contiguous, as often as it is called."""
        ...


@dataclass(frozen=True, slots=True)
class LowRank:
    """`(up @ down) * scale`; stored are down `[rank, in]` and up `[out, rank]`.

    A convolution's factors and weight are taken as such matrices.
    """

    down: Shape
    up: Shape
    scale: Scale

    takes = 2

    @property
    def work(self) -> tuple[Shape, ...]:
        return self.down, self.up

    @property
    def flops(self) -> int:
        return _product_flops(self.up, self.down)

    def prepare(
        self, stored: Sequence[torch.Tensor], delta: torch.Tensor, work: Sequence[torch.Tensor]
    ) -> Run:
        down, up = work
        product = delta.view(up.shape[0], down.shape[1])
        factors = [found.view(made.shape) for found, made in zip(stored, work, strict=True)]

        def run() -> None:
            _widen(work, factors)
            torch.mm(up, down, out=product)
            delta.mul_(self.scale.value)

        return run


@dataclass(frozen=True, slots=True)
class Hadamard:
    """LoHa: `((a1 @ b1) * (a2 @ b2)) * scale`; stored are a1, b1, a2, b2."""

    factors: tuple[Shape, Shape, Shape, Shape]
    scale: Scale

    takes = 4

    @property
    def work(self) -> tuple[Shape, ...]:
        a, b = self.factors[:2]
        return (*self.factors, (a[0], b[1]))

    @property
    def flops(self) -> int:
        a1, b1, a2, b2 = self.factors
        return _product_flops(a1, b1) + _product_flops(a2, b2)

    def prepare(
        self, stored: Sequence[torch.Tensor], delta: torch.Tensor, work: Sequence[torch.Tensor]
    ) -> Run:
        a1, b1, a2, b2, second = work

        def run() -> None:
            _widen(work[:4], stored)
            torch.mm(a1, b1, out=delta)
            torch.mm(a2, b2, out=second)
            delta.mul_(second)
            delta.mul_(self.scale.value)

        return run


@dataclass(frozen=True, slots=True)
class Kronecker:
    """LoKr: `kron(left, right) * scale`; each side is stored whole, or as a product of two."""

    left: tuple[Shape, ...]
    right: tuple[Shape, ...]
    scale: Scale

    @property
    def takes(self) -> int:
        return len(self.left) + len(self.right)

    @property
    def work(self) -> tuple[Shape, ...]:
        products = (_product(side) for side in (self.left, self.right) if len(side) == 2)
        return (*self.left, *self.right, *products)

    @property
    def flops(self) -> int:
        sides = (side for side in (self.left, self.right) if len(side) == 2)
        return sum(_product_flops(*side) for side in sides)

    def prepare(
        self, stored: Sequence[torch.Tensor], delta: torch.Tensor, work: Sequence[torch.Tensor]
    ) -> Run:
        factors, products = work[: self.takes], iter(work[self.takes :])
        split = len(self.left)
        sides, made = [], []
        for side in (factors[:split], factors[split:]):
            whole = side[0] if len(side) == 1 else next(products)
            made += [(side, whole)] if len(side) == 2 else []
            sides.append(whole)
        left, right = sides[0][:, None, :, None], sides[1][None, :, None, :]
        # The same numbers as `torch.kron`, which has no `out=` that would not allocate.
        tiles = delta.view(left.shape[0], right.shape[1], left.shape[2], right.shape[3])

        def run() -> None:
            _widen(factors, stored)
            for (a, b), whole in made:
                torch.mm(a, b, out=whole)
            torch.mul(left, right, out=tiles)
            delta.mul_(self.scale.value)

        return run


@dataclass(frozen=True, slots=True)
class Difference:
    """`stored * scale`: the whole difference of a weight or a bias."""

    scale: Scale

    takes = 1
    work = ()
    flops = 0

    def prepare(
        self, stored: Sequence[torch.Tensor], delta: torch.Tensor, work: Sequence[torch.Tensor]
    ) -> Run:
        source = stored[0].view(delta.shape)

        def run() -> None:
            delta.copy_(source)
            delta.mul_(self.scale.value)

        return run


def _widen(work: Sequence[torch.Tensor], stored: Sequence[torch.Tensor]) -> None:
    for target, source in zip(work, stored, strict=True):
        target.copy_(source)


def _product(side: tuple[Shape, ...]) -> Shape:
    return (side[0][0], side[1][1])


def _product_flops(a: Shape, b: Shape) -> int:
    return 2 * math.prod(a) * b[1]
