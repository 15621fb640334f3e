"""GGML's quantised blocks to numbers: each type's bits taken apart, in pieces, without allocating.

The arithmetic is that of the `gguf` package's `quants.py` (0.19, numpy, fp32), operation by
operation, so the numbers are equal to the last bit; they are rounded once, to the compute dtype.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..layout.values import Leaf
from .gguf_bits import BUILDERS, INDEXED, Bench, Program
from .scratch import PIECE_ELEMENTS, Arrays, carve, pieces, scratch_bytes
from .steps import Cost, copy, in_turn

# Operations over each number of a piece: unpacking, widening, scaling and rounding it.
_PASSES = 8


@dataclass(frozen=True, slots=True)
class GgufBlocks:
    """Blocks of type `kind`, uint8 `[blocks, bytes]`, as the numbers that they stand for."""

    kind: str
    blocks: Leaf
    computed: Leaf

    takes = 1

    @property
    def scratch_bytes(self) -> int:
        return scratch_bytes(self._arrays())

    @property
    def cost(self) -> Cost:
        elements, passes = self.computed.elements, _PASSES * self.computed.elements
        return Cost(self.blocks.nbytes + passes, self.computed.nbytes + passes, 3 * elements)

    def prepare(
        self, stored: Sequence[torch.Tensor], out: torch.Tensor, scratch: torch.Tensor
    ) -> Callable[[], None]:
        (blocks,) = stored
        numbers = out.view(-1, self._block)
        arrays = carve(scratch, self._arrays())
        programs: list[Program] = []
        build = BUILDERS[self.kind]
        for first, count in pieces(self.blocks.shape[0], self._step):
            bench = Bench(
                blocks.narrow(0, first, count),
                *(array[:count] for array in arrays[:7]),
                *arrays[7:],
            )
            programs.append(build(bench))
            target = numbers.narrow(0, first, count)
            programs.append([partial(copy, target, bench.numbers)])
        steps = [step for program in programs for step in program]
        return in_turn(steps)

    @property
    def _block(self) -> int:
        return self.computed.elements // self.blocks.shape[0]

    @property
    def _step(self) -> int:
        return min(self.blocks.shape[0], max(1, PIECE_ELEMENTS // self._block))

    def _arrays(self) -> Arrays:
        """In the order of `Bench`'s fields."""
        count, block = self._step, self._block
        groups = 16 if block == 256 else 0
        indices = count * block if self.kind in INDEXED else 0
        return [
            ("float32", (count, block)),
            ("uint8", (count, block)),
            ("uint8", (count, block)),
            ("float32", (count, 2)),
            ("float32", (count, 2 * groups)),
            ("uint8", (count, 2 * groups)),
            ("uint8", (count, 8)),
            ("int32", (indices,)),
            ("float32", (16 if indices else 0,)),
        ]
