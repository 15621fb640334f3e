"""How the device's sustained FLOP/s and memory rate are measured, with work of which size."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from ..stream.device import Device
from ..units import format_bytes
from .timing import Timing, no_time_passed, not_measured, time_calls, time_once
from .values import Figure, Limits

HEAD_DIM = 128  # as in every Wan transformer
_TILE_ROWS = 64


@dataclass(frozen=True, slots=True)
class _Work:
    """A kind of work that grows with the number of tokens."""

    name: str
    prepare: Callable[[int], Callable[[], None]]
    flops: Callable[[int], float]
    shape: Callable[[int], str]


def compute_figures(device: Device, limits: Limits) -> Iterator[Figure | str]:
    """A figure for each dtype of matrix product and attention, or a sentence why there is none.

    Takes about `limits.compute_seconds`.
    """
    share = limits.compute_seconds / (2 * len(limits.dtypes))
    for dtype in limits.dtypes:
        for kind in (_matmul, _attention):
            work = kind(device, getattr(torch, dtype), limits.width)
            yield _measured(device, work, limits.tokens, share)


def memory_figure(device: Device, limits: Limits) -> Figure | str:
    """The rate of the device's own memory: bytes read and written by a copy within it."""
    nbytes = 2 * limits.copy_bytes
    name = "device memory"
    try:
        source = torch.ones(nbytes, dtype=torch.uint8, device=device.torch_device)
        target = torch.empty_like(source)

        def copy() -> None:
            target.copy_(source, non_blocking=True)

        timing = time_calls(device, device.current_stream(), copy, limits.link_seconds / 5)
    except RuntimeError as error:
        return not_measured(name, error)
    if timing.seconds <= 0:
        return no_time_passed(name)
    how = f"copies of {format_bytes(nbytes)} within it, read and written; {timing.words()}"
    return Figure(name, 2 * nbytes / timing.seconds, "byte", how, timing.spread)


@torch.no_grad()
def _measured(device: Device, work: _Work, rungs: tuple[int, ...], share: float) -> Figure | str:
    try:
        tokens, timing = _climb(device, work, rungs, share)
    except RuntimeError as error:  # a dtype the device lacks, or no memory
        return not_measured(work.name, error)
    if timing.seconds <= 0:
        return no_time_passed(work.name)
    how = f"{work.shape(tokens)}; {timing.words()}"
    return Figure(work.name, work.flops(tokens) / timing.seconds, "FLOP", how, timing.spread)


def _climb(device: Device, work: _Work, rungs: tuple[int, ...], share: float) -> tuple[int, Timing]:
    """Times the largest work of which three calls fit the share: large work is what blocks do."""
    stream = device.current_stream()
    for tokens, larger in pairwise(rungs):
        body = work.prepare(tokens)
        growth = work.flops(larger) / work.flops(tokens)
        if max(time_once(device, stream, body)) * growth > share / 3:
            return tokens, time_calls(device, stream, body, share)
    return rungs[-1], time_calls(device, stream, work.prepare(rungs[-1]), share)


def _matmul(device: Device, dtype: torch.dtype, width: int) -> _Work:
    def prepare(tokens: int) -> Callable[[], None]:
        weight = _random(device, dtype, width, width)
        inputs = _random(device, dtype, tokens, width)

        def call() -> None:
            linear(inputs, weight)

        return call

    return _Work(
        f"matmul {_word(dtype)}",
        prepare,
        lambda tokens: 2.0 * tokens * width * width,
        lambda tokens: f"[{tokens}, {width}] x [{width}, {width}]",
    )


def _attention(device: Device, dtype: torch.dtype, width: int) -> _Work:
    heads = max(1, width // HEAD_DIM)

    def prepare(tokens: int) -> Callable[[], None]:
        # [batch, heads, tokens, head_dim] as views of [batch, tokens, width], as Wan has them
        q, k, v = (
            _random(device, dtype, tokens, heads * HEAD_DIM)
            .view(1, tokens, heads, HEAD_DIM)
            .transpose(1, 2)
            for _ in range(3)
        )

        def call() -> None:
            scaled_dot_product_attention(q, k, v)

        return call

    return _Work(
        f"attention {_word(dtype)}",
        prepare,
        lambda tokens: 4.0 * tokens * tokens * heads * HEAD_DIM,
        lambda tokens: f"{heads} heads of {HEAD_DIM}, {tokens} tokens",
    )


def _random(device: Device, dtype: torch.dtype, rows: int, columns: int) -> torch.Tensor:
    """Random values, because a device that multiplies zeros draws less power and runs faster.

    A few rows are drawn, of a generator of their own, and repeated.
    """
    generator = torch.Generator("cpu").manual_seed(rows)
    drawn = min(rows, _TILE_ROWS)
    tile = torch.randn(drawn, columns, generator=generator, dtype=torch.float32, device="cpu").to(
        dtype
    )
    return tile.to(device.torch_device).repeat(-(-rows // drawn), 1)[:rows]


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
