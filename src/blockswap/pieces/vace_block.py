"""The forward of diffusers' VACE blocks in pieces: a block's own, between two projections."""

from typing import Any

import torch

from .block import Piece, Visit, run


def run_vace(
    visit: Visit, hidden: torch.Tensor, control: torch.Tensor, out: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The hint for the layer and the control states after the block, the latter in `out`.

    `hidden` and `control`: `[batch, tokens, dim]`; `out` may be `control`.
    """
    block = visit.block
    if block.proj_in is not None:
        for sample, (start, stop) in _all(control.shape[0], visit.pieces):
            where = (slice(sample, sample + 1), slice(start, stop))
            out[where] = block.proj_in(control[where]) + hidden[where]
        control = out
    run(visit, control, out)
    return _hint(block, out, visit.pieces), out


def _hint(block: Any, control: torch.Tensor, pieces: tuple[Piece, ...]) -> torch.Tensor | None:
    """Made when keys and values are gone: they are as large."""
    if block.proj_out is None:
        return None
    hint = None
    for sample, (start, stop) in _all(control.shape[0], pieces):
        where = (slice(sample, sample + 1), slice(start, stop))
        some = block.proj_out(control[where])
        if hint is None:
            hint = some.new_empty((*control.shape[:2], some.shape[2]))
        hint[where] = some
    return hint


def _all(samples: int, pieces: tuple[Piece, ...]) -> list[tuple[int, Piece]]:
    return [(sample, piece) for sample in range(samples) for piece in pieces]
