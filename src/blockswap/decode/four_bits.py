"""Four-bit floating point (NVFP4): two numbers a byte, a scale for 16 of them and one for all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..layout.values import Leaf
from .scratch import PIECE_ELEMENTS, Arrays, carve, pieces, scratch_bytes
from .steps import Cost
from .tiles import from_tiles, tiled_shape

# The bits of a four-bit number, put where float8_e5m2 has its sign, exponent and mantissa, are
# that number times this (an exponent less by 14).
_BACK = 2.0**14


@dataclass(frozen=True, slots=True)
class FourBits:
    """An NVFP4 matrix: four-bit number * (scale of all * scale of 16), in the compute dtype.

    The upper half of a byte is the first number. The source is comfy-kitchen's `dequantize_nvfp4`
    (0.2, eager).
    """

    packed: Leaf
    blocks: Leaf
    whole: Leaf
    computed: Leaf

    takes = 3

    @property
    def scratch_bytes(self) -> int:
        return scratch_bytes(self._arrays())

    @property
    def cost(self) -> Cost:
        numbers = self.computed.nbytes
        read = 4 * self.packed.nbytes + self.blocks.nbytes + 3 * numbers
        return Cost(read, 4 * self.packed.nbytes + 3 * numbers, 2 * self.computed.elements)

    def prepare(
        self, stored: Sequence[torch.Tensor], out: torch.Tensor, scratch: torch.Tensor
    ) -> Callable[[], None]:
        packed, blocks, whole = stored
        tiled, scales, one, upper, lower = carve(scratch, self._arrays())
        rows, columns = self._grid
        bring = from_tiles(blocks, tiled)
        plain, number = tiled[:rows, :columns], whole.reshape(1, 1)
        pairs = out.view(rows, -1, 2)
        parts = [
            (packed.narrow(0, at, n), upper[:n], lower[:n], pairs.narrow(0, at, n))
            for at, n in pieces(rows, self._step)
        ]
        groups, factors = out.view(rows, columns, 16), scales[:, :, None]

        def run() -> None:
            bring()
            scales.copy_(plain)
            one.copy_(number)
            scales.mul_(one)
            for source, high, low, target in parts:
                _unpack(source, high, low, target)
            out.mul_(_BACK)
            groups.mul_(factors)

        return run

    @property
    def _grid(self) -> tuple[int, int]:
        return self.computed.shape[0], self.computed.shape[1] // 16

    @property
    def _step(self) -> int:
        rows, columns = self.packed.shape
        return min(rows, max(1, PIECE_ELEMENTS // columns))

    def _arrays(self) -> Arrays:
        piece = (self._step, self.packed.shape[1])
        work = self.computed.dtype
        return [
            ("float32", tiled_shape(self._grid)),
            (work, self._grid),
            (work, (1, 1)),
            ("uint8", piece),
            ("uint8", piece),
        ]


def _unpack(
    source: torch.Tensor, high: torch.Tensor, low: torch.Tensor, target: torch.Tensor
) -> None:
    """Both numbers of each byte of `source`, times `1 / _BACK`, into `target` [..., 2]."""
    torch.bitwise_right_shift(source, 3, out=high)
    high.bitwise_and_(0x0E)
    torch.bitwise_and(source, 0x80, out=low)
    high.bitwise_or_(low)
    target[..., 0].copy_(high.view(torch.float8_e5m2))
    torch.bitwise_left_shift(source, 1, out=low)
    low.bitwise_and_(0x0E)
    torch.bitwise_left_shift(source, 4, out=high)
    high.bitwise_and_(0x80)
    low.bitwise_or_(high)
    target[..., 1].copy_(low.view(torch.float8_e5m2))
