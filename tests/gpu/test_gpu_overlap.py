"""On a real accelerator, in real time: copies are hidden under compute, and the link is used up."""

import time
from collections.abc import Callable

import pytest
import torch
from heavy import HeavyModel, Scale, hidden_for, plain_copy_bytes_per_second, seconds_of

from blockswap import BlockSwapArgs, swap_blocks

pytestmark = pytest.mark.gpu


def test_copies_are_hidden_where_compute_takes_twice_as_long(
    accelerator: torch.device, scale: Scale, tell: Callable[[str], None]
) -> None:
    model, hidden = HeavyModel(scale), hidden_for(scale, accelerator)
    transfer = (
        scale.blocks
        * scale.block_bytes
        / plain_copy_bytes_per_second(scale.block_bytes, accelerator)
    )
    with torch.no_grad():
        model.to(accelerator)
        once = seconds_of(lambda: model(hidden), 5)
        model.repeat(max(1, round(2 * transfer / once)))
        resident = seconds_of(lambda: model(hidden), 5)
        model.to("cpu")
        with swap_blocks(
            model, BlockSwapArgs(blocks_to_swap=scale.blocks), device=accelerator
        ) as swap:
            swapped = seconds_of(lambda: model(hidden), 5)
            visits = swap.measured().visits[2 * scale.blocks :]
    exposed = sum(v.exposed_seconds for v in visits) / sum(
        v.exposed_seconds + v.compute_seconds for v in visits
    )
    tell(
        f"compute-bound (transfer/compute {transfer / resident:.2f}): {swapped * 1e3:.1f} ms a "
        f"forward, resident {resident * 1e3:.1f} ms, {swapped / resident:.3f} x; "
        f"{100 * exposed:.1f} % of the time waiting"
    )
    assert swapped <= 1.05 * resident
    assert exposed <= 0.03


def test_the_link_is_used_up_where_transfer_takes_longest(
    accelerator: torch.device, scale: Scale, tell: Callable[[str], None]
) -> None:
    model, hidden = HeavyModel(scale), hidden_for(scale, accelerator, tokens=16)
    plain = plain_copy_bytes_per_second(scale.block_bytes, accelerator)
    with (
        torch.no_grad(),
        swap_blocks(model, BlockSwapArgs(blocks_to_swap=scale.blocks), device=accelerator) as swap,
    ):
        step = seconds_of(lambda: model(hidden), 10)
        achieved = swap.plan.copied_bytes_per_forward / step
    tell(
        f"transfer-bound: {achieved / 1e9:.2f} GB/s streamed, {plain / 1e9:.2f} GB/s by plain "
        f"pinned copies, {100 * achieved / plain:.0f} %"
    )
    assert achieved >= 0.9 * plain


def test_a_forward_returns_while_the_device_still_computes(
    accelerator: torch.device, scale: Scale, tell: Callable[[str], None]
) -> None:
    model, hidden = HeavyModel(scale), hidden_for(scale, accelerator)
    model.repeat(8)
    with (
        torch.no_grad(),
        swap_blocks(model, BlockSwapArgs(blocks_to_swap=scale.blocks), device=accelerator),
    ):
        seconds_of(lambda: model(hidden), 2)
        began = time.perf_counter()
        model(hidden)
        end = torch.Event(accelerator)
        end.record()
        returned = time.perf_counter() - began
        still_computing = not end.query()
        torch.accelerator.synchronize()
        tell(
            f"host: {returned / scale.blocks * 1e6:.0f} µs a block to enqueue, device "
            f"{(time.perf_counter() - began) / scale.blocks * 1e6:.0f} µs a block"
        )
    assert still_computing


def test_no_forward_synchronises_the_host(accelerator: torch.device, scale: Scale) -> None:
    if accelerator.type != "cuda":
        pytest.skip(f"torch reports hidden synchronisations on cuda only, this is {accelerator}")
    model, hidden = HeavyModel(scale), hidden_for(scale, accelerator)
    with (
        torch.no_grad(),
        swap_blocks(model, BlockSwapArgs(blocks_to_swap=scale.blocks), device=accelerator),
    ):
        model(hidden)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                model(hidden)
        finally:
            torch.cuda.set_sync_debug_mode(before)
