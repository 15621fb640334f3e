"""Measures one size of pieces against the whole: seconds of the processor, in rounds in turn."""

import time
from typing import Any

import torch

from benchmarks.pieces.what import (
    DIM,
    FFN_DIM,
    HEADS,
    ROUNDS,
    TEXT_TOKENS,
    TOKENS,
    Row,
)
from blockswap.pieces import Pieces


def block_model() -> Any:
    """The 1.3B's geometry with one block, random weights in fp32."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=DIM // HEADS,
        ffn_dim=FFN_DIM,
        num_layers=1,
        text_dim=DIM,
    ).eval()


def inputs() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(1, 16, 9, 60, 32, generator=draw),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, DIM, generator=draw),
        "return_dict": False,
    }


def measure(chunk_tokens: int) -> Row:
    """The processor's seconds, not the clock's: other programs run on the machine, too."""
    torch.set_num_threads(1)
    model, given = block_model(), inputs()
    pieces = Pieces(model, chunk_tokens, _refuse)
    assert len(pieces.cut(TOKENS)) > 1
    seconds: dict[int, list[float]] = {0: [], chunk_tokens: []}
    outputs: dict[int, torch.Tensor] = {}
    for number in range(ROUNDS + 1):
        order = (0, chunk_tokens) if number % 2 else (chunk_tokens, 0)
        for tokens in order:
            pieces.chunk_tokens = tokens
            start = time.process_time()
            with torch.no_grad():
                outputs[tokens] = model(**given)[0]
            seconds[tokens].append(time.process_time() - start)
    pieces.remove()
    return Row(
        chunk_tokens,
        tuple(seconds[0][1:]),  # the first round warms up
        tuple(seconds[chunk_tokens][1:]),
        torch.equal(outputs[0], outputs[chunk_tokens]),
    )


def _refuse(sentence: str) -> None:
    raise RuntimeError(sentence)
