"""Measures one size of pieces against the whole: seconds of the processor, in rounds in turn."""

import time
from typing import Any

import torch

from benchmarks.pieces.what import LATENT, ROUNDS, TEXT_TOKENS, TOKENS, Row
from benchmarks.shared.forward import blocks_of_1_3b, inputs_of
from benchmarks.shared.paired import in_turn
from blockswap.pieces import Pieces


def measure(chunk_tokens: int) -> Row:
    """The processor's seconds, not the clock's: other programs run on the machine, too."""
    torch.set_num_threads(1)
    model = blocks_of_1_3b(1)
    pieces = Pieces(model, chunk_tokens, _refuse)
    assert len(pieces.cut(TOKENS)) > 1

    def of_size(tokens: int) -> Any:
        pieces.chunk_tokens = tokens
        return model

    (whole, cut), equal = in_turn(
        (lambda: of_size(0), lambda: of_size(chunk_tokens)),
        inputs_of(LATENT, TEXT_TOKENS, torch.float32, 1),
        rounds=ROUNDS,
        warm_up=1,
        clock=time.process_time,
    )
    pieces.remove()
    return Row(chunk_tokens, whole, cut, equal)


def _refuse(sentence: str) -> None:
    raise RuntimeError(sentence)
