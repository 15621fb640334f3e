"""Eight bits times a scale (per tensor, row, group or block), rounded as whoever wrote it rounds.

work = the compute dtype    number and scale are rounded to it, then multiplied in it
work = another one          multiplied in that, and rounded once to the compute dtype
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..layout.values import Leaf
from .scratch import PIECE_ELEMENTS, Arrays, carve, pieces, scratch_bytes
from .steps import Cost, copy
from .tiles import from_tiles, tiled_shape


@dataclass(frozen=True, slots=True)
class Scaled:
    """A matrix of 8-bit numbers times its scales, in the arithmetic of dtype `work`.

    `grid` is how many scales there are, above each other and side by side. The source is, where
    work is the compute dtype, comfy-kitchen's `dequantize_per_tensor_fp8` (0.2); the scale's dtype:
    musubi-tuner's fp8 in groups and quanto's `QBytesDequantizer` (0.2); float32: transformers'
    `Fp8Dequantize` (5.24) and comfy-kitchen's `dequantize_int8_simple` and `dequantize_mxfp8`.
    With `tiled` scales are exponents in tiles (see `tiles`).
    """

    weight: Leaf
    scale: Leaf
    computed: Leaf
    grid: tuple[int, int]
    work: str
    tiled: bool = False

    takes = 2

    @property
    def scratch_bytes(self) -> int:
        return scratch_bytes(self._arrays())

    @property
    def cost(self) -> Cost:
        numbers, elements = self.computed.nbytes, self.computed.elements
        once = Cost(self.weight.nbytes + self.scale.nbytes, numbers, elements)
        apart = numbers if self._in_place else 8 * elements
        return once + Cost(apart, apart)

    def prepare(
        self, stored: Sequence[torch.Tensor], out: torch.Tensor, scratch: torch.Tensor
    ) -> Callable[[], None]:
        weight, scale = stored
        scales, *works = carve(scratch, self._arrays())
        bring = self._bring_scales(scale, scales)
        rows, columns = self._rows, self.grid[1]
        factors = scales[: self.grid[0], :columns].expand(rows, columns)[:, None, :, None]
        target, source = self._blocks(out), self._blocks(weight)
        if self._in_place:
            return _together(bring, target, source, factors)
        parts = [
            (works[0][:count], *(t.narrow(0, at, count) for t in (target, source, factors)))
            for at, count in pieces(rows, self._step)
        ]
        return _apart(bring, parts)

    def _bring_scales(self, scale: torch.Tensor, scales: torch.Tensor) -> Callable[[], None]:
        """What brings the scales into the form in which they multiply."""
        if self.tiled:
            return from_tiles(scale, scales)
        source = scale.reshape(self.grid)
        return lambda: copy(scales, source)

    @property
    def _in_place(self) -> bool:
        return self.work == self.computed.dtype

    @property
    def _rows(self) -> int:
        """Rows of scales; one scale for all rows counts as one for each."""
        return self.grid[0] if self.grid[0] > 1 else self.computed.shape[0]

    @property
    def _step(self) -> int:
        """How many of those rows are dequantised at a time."""
        per_row = self.computed.elements // self._rows
        return min(self._rows, max(1, PIECE_ELEMENTS // per_row))

    def _blocks(self, tensor: torch.Tensor) -> torch.Tensor:
        rows, columns = self.computed.shape
        return tensor.view(self._rows, rows // self._rows, self.grid[1], columns // self.grid[1])

    def _arrays(self) -> Arrays:
        """Scales as they multiply; a piece of the product where it has a dtype of its own."""
        scales = ("float32", tiled_shape(self.grid)) if self.tiled else (self.work, self.grid)
        if self._in_place:
            return [scales]
        rows, columns = self.computed.shape
        high, wide = rows // self._rows, columns // self.grid[1]
        return [scales, (self.work, (self._step, high, self.grid[1], wide))]


def _together(
    bring: Callable[[], None], target: torch.Tensor, source: torch.Tensor, factors: torch.Tensor
) -> Callable[[], None]:
    def run() -> None:
        bring()
        target.copy_(source)
        target.mul_(factors)

    return run


def _apart(
    bring: Callable[[], None], parts: Sequence[tuple[torch.Tensor, ...]]
) -> Callable[[], None]:
    def run() -> None:
        bring()
        for work, target, source, factors in parts:
            work.copy_(source)
            work.mul_(factors)
            target.copy_(work)

    return run
