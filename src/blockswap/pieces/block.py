"""The forward of diffusers' Wan blocks for a piece of tokens, in the arithmetic of their own.

The two functions know of one piece alone, so that a graph compiled for one serves all of its size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .attention import (
    Context,
    Rotary,
    attended,
    attended_context,
    context_of,
    keys_and_values,
    queries,
)
from .modulation import Modulation, PieceVectors, TokenTimes
from .visit import Keys, Piece, Visit


def projected_piece(
    block: Any, hidden: torch.Tensor, vectors: PieceVectors, rotary: Rotary
) -> Keys:
    """Keys and values of a piece of hidden states."""
    return keys_and_values(block.attn1, _normed(block, hidden, vectors), rotary)


def finished_piece(
    block: Any,
    hidden: torch.Tensor,
    keys: Keys,
    context: Context,
    vectors: PieceVectors,
    rotary: Rotary,
) -> torch.Tensor:
    """A piece of hidden states after the block; `keys` are those of all tokens."""
    vector = vectors.vector
    normed = _normed(block, hidden, vectors)
    query = queries(block.attn1, normed, rotary)
    del normed
    seen = attended(block.attn1, query, keys)
    del query
    hidden = (hidden.float() + seen * vector(2)).type_as(hidden)
    normed = block.norm2(hidden.float()).type_as(hidden)
    hidden = hidden + attended_context(block.attn2, normed, context)
    shift, scale = vector(3), vector(4)
    normed = (block.norm3(hidden.float()) * (1 + scale) + shift).type_as(hidden)
    del seen, shift, scale
    forwarded = block.ffn(normed)
    del normed
    gated = forwarded.float() * vector(5)
    del forwarded
    done: torch.Tensor = (hidden.float() + gated).type_as(hidden)
    return done


def _normed(block: Any, hidden: torch.Tensor, vectors: PieceVectors) -> torch.Tensor:
    normed = block.norm1(hidden.float()) * (1 + vectors.vector(1))
    shifted: torch.Tensor = (normed + vectors.vector(0)).type_as(hidden)
    return shifted


@dataclass(frozen=True)
class PieceFunctions:
    """The two functions of a piece, as they are or compiled."""

    projected: Callable[..., Keys] = projected_piece
    finished: Callable[..., torch.Tensor] = finished_piece


class BlockVisit(Visit):
    """One run of one of diffusers' Wan blocks."""

    def __init__(
        self,
        block: Any,
        given: tuple[torch.Tensor, "torch.Tensor | TokenTimes", Rotary],
        pieces: tuple[Piece, ...],
        functions: PieceFunctions,
    ) -> None:
        """`given`: text, time projections and rotary tables, as the block's own forward takes."""
        text, times, self._rotary = given
        self._block, self.pieces, self._functions = block, pieces, functions
        self._modulation = Modulation(block.scale_shift_table, times)
        self._context = context_of(block.attn2, text)

    def keys_and_values(self, hidden: torch.Tensor, sample: int, piece: Piece) -> Keys:
        vectors = self._modulation.of(sample, piece)
        return self._functions.projected(self._block, hidden, vectors, self._rotary_of(piece))

    def finished(self, hidden: torch.Tensor, keys: Keys, sample: int, piece: Piece) -> torch.Tensor:
        context, vectors = self._context.of(sample), self._modulation.of(sample, piece)
        rotary = self._rotary_of(piece)
        return self._functions.finished(self._block, hidden, keys, context, vectors, rotary)

    def _rotary_of(self, piece: Piece) -> Rotary:
        cos, sin = self._rotary
        return cos[:, piece[0] : piece[1]], sin[:, piece[0] : piece[1]]
