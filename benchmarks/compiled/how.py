"""Measures blocks compiled by Inductor, in memory and streamed from their file, in turn."""

import tempfile
import time
from pathlib import Path

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks.compiled.what import BLOCKS, LATENT, ROUNDS, TEXT_TOKENS, Row
from benchmarks.shared.forward import blocks_of_1_3b, inputs_of
from benchmarks.shared.paired import in_turn
from blockswap import open_transformer


def measure() -> list[Row]:
    """One row with eager blocks, for comparison, and one with compiled ones."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        blocks_of_1_3b(BLOCKS).save_pretrained(path)
        return [_row(path, compiled=False), _row(path, compiled=True)]


def _row(folder: Path, *, compiled: bool) -> Row:
    counter = CompileCounterWithBackend("inductor")
    whole = blocks_of_1_3b(BLOCKS)
    streamed = open_transformer(folder, {"blocks_to_swap": BLOCKS}, device="cpu")
    if compiled:
        torch._dynamo.reset()
        for block in whole.blocks:
            block.compile()
        for block in streamed.blocks:  # type: ignore[union-attr]
            block.compile(backend=counter)
    (in_memory, from_file), equal = in_turn(
        (lambda: whole, lambda: streamed),
        inputs_of(LATENT, TEXT_TOKENS, torch.float32, 1),
        rounds=ROUNDS,
        warm_up=2,  # the first compiles
        clock=time.process_time,  # the machine is shared: readers' threads are counted, waits not
    )
    visits = streamed.blockswap.measured().visits  # type: ignore[union-attr, operator]
    waited = sum(visit.exposed_seconds for visit in visits) if visits else None
    streamed.blockswap.close()  # type: ignore[union-attr, operator]
    what = "compiled by Inductor" if compiled else "eager"
    return Row(what, in_memory, from_file, counter.frame_count, equal, waited)
