"""Drawing weights: this module owns the random bytes of a tensor, in bounded memory and fast.

A value depends on seed, original key and position alone: not on the file, its shards, its prefix
or its naming. All draws are uniform, so that they are the same bits on every CPU and no forward
meets an outlier: a weight matrix has variance 1 / inputs (rounded to a power of four), a norm's
weight lies around 1. Large tensors are strung together from random windows of one pool:

    pool (4 Mi draws, one for each element type and scale)   [........................]
    tensor = windows of 256 Ki elements                          [w0]  [w2]   [w1]

Two tensors of one shape agree in all windows with a chance of at most 2^-42.
"""

import math
import random
from collections.abc import Iterator
from hashlib import blake2b

import torch

from .spec import Spec

WINDOW = 2**18  # elements
POOL = 2**22  # elements
_UNIT = math.sqrt(12.0)  # width of the uniform distribution of variance 1
_NORM_SPREAD = 0.1
_BIAS_EXPONENT = -6


class Drawer:
    """Draws the tensors of one specification. Holds at most a pool for each dtype and scale."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._pools: dict[tuple[str, int], memoryview] = {}

    def draw(self, key: str, shape: tuple[int, ...]) -> Iterator[memoryview]:
        """The bytes of the tensor with this original key, piece by piece, each read-only.

        A piece is valid until the next is asked for.
        """
        dtype, count = self._spec.dtype_of(key), math.prod(shape)
        number = _number(f"{self._spec.seed}/{key}")
        if count <= WINDOW:
            norm = self._spec.is_norm(key)
            yield _packed(_small(key, shape, number, norm=norm), dtype)
            return
        pool = self._pool(dtype, _exponent(shape))
        item_bytes = len(pool) // POOL
        offsets = random.Random(number)
        while count:
            start, size = offsets.randrange(POOL - WINDOW), min(count, WINDOW)
            yield pool[start * item_bytes : (start + size) * item_bytes]
            count -= size

    def _pool(self, dtype: str, exponent: int) -> memoryview:
        where = (dtype, exponent)
        if where not in self._pools:
            drawn = _uniform(POOL, _number(f"{self._spec.seed}/pool"))
            self._pools[where] = _packed(drawn.mul_(2.0**exponent), dtype)
        return self._pools[where]


def _small(key: str, shape: tuple[int, ...], number: int, *, norm: bool) -> torch.Tensor:
    drawn = _uniform(math.prod(shape), number)
    if norm and key.endswith(".weight"):
        return drawn.mul_(_NORM_SPREAD).add_(1.0)
    if key.endswith("modulation"):
        return drawn.mul_(2.0 ** _exponent((shape[-1],)))
    return drawn.mul_(2.0 ** (_exponent(shape) if len(shape) > 1 else _BIAS_EXPONENT))


def _exponent(shape: tuple[int, ...]) -> int:
    """The power of two nearest to 1 / sqrt(inputs)."""
    inputs = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    return -round(math.log2(max(inputs, 1)) / 2)


def _uniform(count: int, number: int) -> torch.Tensor:
    """float32 [count] of mean 0 and variance 1."""
    generator = torch.Generator().manual_seed(number)
    return torch.rand(count, generator=generator).sub_(0.5).mul_(_UNIT)


def _packed(values: torch.Tensor, dtype: str) -> memoryview:
    """The bytes of `values` cast to `dtype`."""
    element: torch.dtype = getattr(torch, dtype)
    buffer = bytearray(values.numel() * element.itemsize)
    torch.frombuffer(buffer, dtype=element).copy_(values)
    return memoryview(buffer).toreadonly()


def _number(text: str) -> int:
    """63 bits that depend on every character of the text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
