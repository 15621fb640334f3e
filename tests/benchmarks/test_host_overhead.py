"""The overhead benchmark measures what it says: no time is asserted here, only what is counted."""

from contextlib import ExitStack
from unittest import mock

import torch

from benchmarks.host_overhead.how import (
    AROUND,
    GATHERS,
    SECTIONS,
    Alike,
    TrivialModel,
    attribute,
    block_seconds,
)
from benchmarks.host_overhead.how.null_device import null_device
from benchmarks.host_overhead.how.stopwatch import Stopwatch
from benchmarks.host_overhead.what import BLOCKS, TENSORS
from blockswap import BlockSwapArgs, swap_blocks
from one_rank import swapped


def test_every_block_of_every_forward_is_timed() -> None:
    assert len(block_seconds(TrivialModel(), 3)) == 3 * BLOCKS


def test_the_model_has_as_many_tensors_in_a_block_as_wan() -> None:
    assert len(list(TrivialModel().blocks[0].parameters())) == TENSORS == 27


def test_the_null_device_is_asked_what_an_accelerator_would_be() -> None:
    model = TrivialModel().eval()
    with (
        null_device() as device,
        swap_blocks(model, BlockSwapArgs(blocks_to_swap=BLOCKS), device="null"),
    ):
        block_seconds(model, 2)
        device.calls.clear()
        with torch.no_grad():
            model(torch.zeros(1))
    # For each block: the copy stream waits for free, the compute stream for ready.
    assert device.calls["stream.wait_event"] == 2 * BLOCKS
    assert device.calls["current_stream"] == BLOCKS
    assert device.calls["event.synchronize"] == 0


def test_all_sections_take_part_of_the_time() -> None:
    """Gathers only where there are other ranks: one that agrees at once, here."""
    with null_device() as device:
        args = BlockSwapArgs(blocks_to_swap=BLOCKS)
        for gathers in (False, True):
            with ExitStack() as closing:

                def open_it(gathers: bool = gathers, closing: ExitStack = closing) -> TrivialModel:
                    model = TrivialModel().eval()
                    alike = Alike(2)
                    swap = (
                        swapped(model, args, alike, device)
                        if gathers
                        else swap_blocks(model, args, device="null")
                    )
                    closing.enter_context(swap)
                    return model

                sections = attribute(open_it)
            wanted = {AROUND, *SECTIONS} - (set() if gathers else {GATHERS})
            assert set(sections) == wanted
            assert all(sections[name] > 0 for name in wanted - {AROUND})


def test_the_stopwatch_books_inner_time_to_the_inner_section() -> None:
    now = [0.0, 1.0, 4.0, 9.0]  # outer begins, inner begins, inner ends, outer ends
    stopwatch = Stopwatch()
    with mock.patch("benchmarks.host_overhead.how.stopwatch.time.perf_counter", side_effect=now):
        inner = stopwatch.watch("inner", lambda: None)
        outer = stopwatch.watch("outer", inner)
        outer()
    assert stopwatch.seconds == {"inner": 3.0, "outer": 6.0}
