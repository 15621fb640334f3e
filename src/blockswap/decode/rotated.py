"""Int8 weights that were rotated before they were quantised (ConvRot), turned back.

Each group of a row was multiplied with a regular Hadamard matrix; the same product undoes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ..layout.values import Leaf
from .scratch import Arrays, carve, scratch_bytes
from .steps import Cost


@dataclass(frozen=True, slots=True)
class Rotated:
    """An int8 matrix times its scales in fp32, each group of its rows rotated back.

    The source is comfy-kitchen's `dequantize_int8_convrot_weight` (0.2). How a product of matrices
    is rounded depends on its shape, so the weight is rotated in one piece, as there: the scratch
    is twice the weight in fp32.
    """

    weight: Leaf
    scale: Leaf
    computed: Leaf
    grid: tuple[int, int]
    group: int

    takes = 2

    @property
    def scratch_bytes(self) -> int:
        return scratch_bytes(self._arrays())

    @property
    def cost(self) -> Cost:
        elements = self.computed.elements
        read = self.weight.nbytes + self.scale.nbytes + 12 * elements
        return Cost(read, 12 * elements + self.computed.nbytes, (2 * self.group + 1) * elements)

    def prepare(
        self, stored: Sequence[torch.Tensor], out: torch.Tensor, scratch: torch.Tensor
    ) -> Callable[[], None]:
        weight, scale = stored
        scales, plain, turned, *matrices = carve(scratch, self._arrays())
        source = scale.reshape(self.grid)
        build = _hadamard(matrices)
        grouped, result = plain.view(-1, self.group), turned.view(-1, self.group)
        matrix = matrices[-1].T

        def run() -> None:
            build()
            scales.copy_(source)
            plain.copy_(weight)
            plain.mul_(scales)
            torch.mm(grouped, matrix, out=result)
            out.copy_(turned)

        return run

    def _arrays(self) -> Arrays:
        shape, sizes = self.computed.shape, []
        size = 4
        while size <= self.group:
            sizes.append(size)
            size *= 4
        return [
            ("float32", self.grid),
            ("float32", shape),
            ("float32", shape),
            *(("float32", (n, n)) for n in sizes),
        ]


def _hadamard(matrices: Sequence[torch.Tensor]) -> Callable[[], None]:
    """What fills matrices of 4, 16, 64 ... rows, each the Kronecker product of the one before."""
    first = matrices[0]
    diagonal = first.view(16)[3:13:3]  # from the upper right corner to the lower left
    steps = []
    for before, after in pairwise(matrices):
        rows = before.shape[0]
        product = after.view(rows, 4, rows, 4)
        steps.append((before[:, None, :, None], first[None, :, None, :], product))
    last = matrices[-1]

    def run() -> None:
        first.fill_(1)
        diagonal.fill_(-1)
        for left, right, product in steps:
            torch.mul(left, right, out=product)
        last.mul_(last.shape[0] ** -0.5)  # a power of two

    return run
