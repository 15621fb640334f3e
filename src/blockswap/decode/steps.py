"""What a step of decoding is: bytes it reads and writes, its scratch, its cost; cast and join.

A tensor has a *stored form* (one or more arrays, as the file or host memory holds them) and a
*compute form* (one array). Where they differ one step stands between them, which reads the stored
arrays and writes the whole compute form into the decode buffer:

    cast | join | scale, or dequantise | merge adapters into what one of these makes
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..layout.values import Leaf


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of a step asks of the device: bytes of its memory read and written, FLOPs."""

    read_bytes: int = 0
    written_bytes: int = 0
    flops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.read_bytes + other.read_bytes,
            self.written_bytes + other.written_bytes,
            self.flops + other.flops,
        )

    @property
    def moved_bytes(self) -> int:
        return self.read_bytes + self.written_bytes


class Step(Protocol):
    """One step of a tensor's decoding. A step is a value: it holds no device memory.

    `takes` is the number of stored arrays that are its own, of those of the tensor, in order;
    `scratch_bytes` what it needs beside its output while it runs, from the decode buffer. Whose
    arithmetic it follows stands in its class's docstring.
    """

    @property
    def takes(self) -> int: ...

    @property
    def scratch_bytes(self) -> int: ...

    @property
    def cost(self) -> Cost: ...

    def prepare(
        self, stored: Sequence[torch.Tensor], out: torch.Tensor, scratch: torch.Tensor
    ) -> Callable[[], None]:
        """What enqueues the step on the current stream, as often as it is called.

        `stored` are the `takes` arrays, `out` the compute form, `scratch` uint8 `[scratch_bytes]`.
        Views are made here, once: the call itself allocates nothing and never waits.
        """
        ...


@dataclass(frozen=True, slots=True)
class Cast:
    """The stored numbers in another dtype, rounded as `Tensor.to` rounds."""

    stored: Leaf
    computed: Leaf

    takes = 1
    scratch_bytes = 0

    @property
    def cost(self) -> Cost:
        return Cost(self.stored.nbytes, self.computed.nbytes)

    def prepare(
        self, stored: Sequence[torch.Tensor], out: torch.Tensor, scratch: torch.Tensor
    ) -> Callable[[], None]:
        (source,) = stored
        return lambda: copy(out, source)


@dataclass(frozen=True, slots=True)
class Join:
    """The pieces one behind the other, each cast as `Tensor.to` casts. Nothing is computed.

    `out` may be of any float dtype, such as the fp32 in which adapters are added.
    """

    stored: tuple[Leaf, ...]
    computed: Leaf

    scratch_bytes = 0

    @property
    def takes(self) -> int:
        return len(self.stored)

    @property
    def cost(self) -> Cost:
        return Cost(sum(leaf.nbytes for leaf in self.stored), self.computed.nbytes)

    def prepare(
        self, stored: Sequence[torch.Tensor], out: torch.Tensor, scratch: torch.Tensor
    ) -> Callable[[], None]:
        flat, at, pairs = out.view(-1), 0, []
        for piece in stored:
            pairs.append((flat.narrow(0, at, piece.numel()), piece.view(-1)))
            at += piece.numel()

        def run() -> None:
            for target, source in pairs:
                target.copy_(source)

        return run


def copy(out: torch.Tensor, source: torch.Tensor) -> None:
    """Enqueues a copy, with a cast where dtypes differ."""
    out.copy_(source)


def in_turn(runs: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """What enqueues all of `runs`, one behind the other."""

    def run() -> None:
        for each in runs:
            each()

    return run
