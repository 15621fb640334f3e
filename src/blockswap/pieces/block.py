"""The forward of diffusers' Wan blocks for a piece of tokens, in the arithmetic of their own."""

from typing import Any

import torch

from .attention import Context, Rotary, attended, keys_and_values, queries
from .modulation import Modulation, TokenTimes
from .visit import Keys, Piece, Visit


class BlockVisit(Visit):
    """One run of one of diffusers' Wan blocks."""

    def __init__(
        self,
        block: Any,
        given: tuple[torch.Tensor, "torch.Tensor | TokenTimes", Rotary],
        pieces: tuple[Piece, ...],
    ) -> None:
        """`given`: text, time projections and rotary tables, as the block's own forward takes."""
        text, times, self._rotary = given
        self._block, self.pieces = block, pieces
        self._vector = Modulation(block.scale_shift_table, times).vector
        self._context = Context(block.attn2, text)

    def keys_and_values(self, hidden: torch.Tensor, sample: int, piece: Piece) -> Keys:
        normed = self._normed(hidden, sample, piece)
        return keys_and_values(self._block.attn1, normed, self._rotary_of(piece))

    def finished(self, hidden: torch.Tensor, keys: Keys, sample: int, piece: Piece) -> torch.Tensor:
        block, vector = self._block, self._vector
        normed = self._normed(hidden, sample, piece)
        query = queries(block.attn1, normed, self._rotary_of(piece))
        del normed
        seen = attended(block.attn1, query, keys)
        del query
        hidden = (hidden.float() + seen * vector(2, sample, piece)).type_as(hidden)
        normed = block.norm2(hidden.float()).type_as(hidden)
        hidden = hidden + self._context.attended(normed, sample)
        shift, scale = vector(3, sample, piece), vector(4, sample, piece)
        normed = (block.norm3(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        del seen, shift, scale
        forwarded = block.ffn(normed)
        del normed
        gated = forwarded.float() * vector(5, sample, piece)
        del forwarded
        done: torch.Tensor = (hidden.float() + gated).type_as(hidden)
        return done

    def _normed(self, hidden: torch.Tensor, sample: int, piece: Piece) -> torch.Tensor:
        normed = self._block.norm1(hidden.float()) * (1 + self._vector(1, sample, piece))
        shifted: torch.Tensor = (normed + self._vector(0, sample, piece)).type_as(hidden)
        return shifted

    def _rotary_of(self, piece: Piece) -> Rotary:
        cos, sin = self._rotary
        return cos[:, piece[0] : piece[1]], sin[:, piece[0] : piece[1]]
