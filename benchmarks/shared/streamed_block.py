"""Seconds of one streamed block by itself, while its weights are in their slot."""

import contextlib
import time
from typing import Any

import torch

RUNS = 3


class Timed(Exception):
    """Ends a forward at its block: what was wanted is known."""


def seconds_in_slot(model: Any, block: torch.nn.Module, given: dict[str, Any]) -> list[float]:
    """Seconds of `block` with the inputs that a forward with `given` hands it, a few times.

    It runs behind the engine's back, so nothing is fetched or evicted meanwhile, and reads that
    are under way are waited for first.
    """
    swap, seconds = model.blockswap, []

    def run(block: torch.nn.Module, args: Any, kwargs: Any) -> None:
        for slot in swap._streamer._pool.slots:
            assert slot.job is None or slot.job.wait(60)
        before = swap.measured().counters.reads
        for _ in range(RUNS):
            began = time.perf_counter()
            block.forward(*args, **kwargs)
            seconds.append(time.perf_counter() - began)
        assert swap.measured().counters.reads == before
        raise Timed

    # After the engine's own hook: the weights hang in the block by then.
    handle = block.register_forward_pre_hook(run, with_kwargs=True)
    try:
        with torch.inference_mode(), contextlib.suppress(Timed):
            model(**given)
    finally:
        handle.remove()
    return seconds
