"""Measures blocks compiled by Inductor, in memory and streamed from their file, in turn."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks.compiled.what import BLOCKS, DIM, FFN_DIM, HEADS, ROUNDS, TEXT_TOKENS, Row
from blockswap import open_transformer


def measure() -> list[Row]:
    """One row with eager blocks, for comparison, and one with compiled ones."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        _model().save_pretrained(path)
        return [_row(path, compiled=False), _row(path, compiled=True)]


def _row(folder: Path, *, compiled: bool) -> Row:
    counters = [CompileCounterWithBackend("inductor") for _ in range(2)]
    whole, streamed = _model(), open_transformer(folder, {"blocks_to_swap": BLOCKS}, device="cpu")
    if compiled:
        for model, counter in zip((whole, streamed), counters, strict=True):
            torch._dynamo.reset()
            for block in model.blocks:  # type: ignore[union-attr]
                block.compile(backend=counter)
    seconds: tuple[list[float], list[float]] = ([], [])
    outputs: list[Any] = [None, None]
    given = _inputs()
    with torch.no_grad():
        for number in range(ROUNDS + 2):
            for which in (0, 1) if number % 2 else (1, 0):
                start = time.perf_counter()
                outputs[which] = (whole, streamed)[which](**given)[0]
                seconds[which].append(time.perf_counter() - start)
    streamed.blockswap.close()  # type: ignore[union-attr, operator]
    return Row(
        "compiled by Inductor" if compiled else "eager",
        tuple(seconds[0][2:]),  # the first rounds compile and warm up
        tuple(seconds[1][2:]),
        counters[1].frame_count,
        torch.equal(outputs[0], outputs[1]),
    )


def _model() -> Any:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=DIM // HEADS,
        ffn_dim=FFN_DIM,
        num_layers=BLOCKS,
        text_dim=DIM,
    )
    return model.eval().requires_grad_(False)


def _inputs() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(1, 16, 3, 60, 32, generator=draw),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, DIM, generator=draw),
        "return_dict": False,
    }
