"""The forward of diffusers' Wan blocks in pieces of tokens.

All keys and values are made first, piece by piece; then each piece runs to the block's end:

    piece      0   1   2   0                                   1 ...
    does       k,v k,v k,v norm q attention text ffn -> out    norm q ...
    alive      hidden states, keys and values; of one piece: q, attention, the wide ones of the ffn
"""

from dataclasses import dataclass
from typing import Any

import torch

from .attention import Context, Rotary, attended, keys_and_values, queries
from .modulation import Modulation, TokenTimes

Piece = tuple[int, int]
Keys = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Visit:
    """One run of one block: its parts, what it is given, and how it is cut."""

    block: Any
    modulation: Modulation
    context: Context
    rotary: Rotary
    pieces: tuple[Piece, ...]


def visit_of(
    block: Any,
    given: tuple[torch.Tensor, "torch.Tensor | TokenTimes", Rotary],
    pieces: tuple[Piece, ...],
) -> Visit:
    """`given`: text, time projections and rotary tables, as the block's own forward takes them."""
    text, times, rotary = given
    modulation = Modulation(block.scale_shift_table, times)
    return Visit(block, modulation, Context(block.attn2, text), rotary, pieces)


def run(visit: Visit, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Hidden states `[batch, tokens, dim]` after the block, in `out`, which may be `hidden`.

    A piece of `hidden` is read for the last time before the same piece of `out` is written.
    """
    for sample in range(hidden.shape[0]):
        own = hidden[sample : sample + 1]
        keys = _all_keys(visit, own, sample)
        for start, stop in visit.pieces:
            out[sample : sample + 1, start:stop] = _piece(visit, own, keys, sample, (start, stop))
    return out


def _all_keys(visit: Visit, own: torch.Tensor, sample: int) -> Keys:
    """Keys and values of one sample's tokens, `[1, tokens, heads, head_dim]` each."""
    key = value = None
    for start, stop in visit.pieces:
        normed = _normed(visit, own[:, start:stop], sample, (start, stop))
        some = keys_and_values(visit.block.attn1, normed, _rotary(visit, (start, stop)))
        del normed
        if key is None or value is None:
            key, value = (part.new_empty((1, own.shape[1], *part.shape[2:])) for part in some)
        key[:, start:stop], value[:, start:stop] = some
        del some
    assert key is not None, "there is a piece"
    assert value is not None, "it comes with the key"
    return key, value


def _piece(visit: Visit, own: torch.Tensor, keys: Keys, sample: int, piece: Piece) -> torch.Tensor:
    """The tokens of one piece after the block, in the arithmetic of the host's forward."""
    block, vector = visit.block, visit.modulation.vector
    hidden = own[:, piece[0] : piece[1]]
    normed = _normed(visit, hidden, sample, piece)
    query = queries(block.attn1, normed, _rotary(visit, piece))
    del normed
    seen = attended(block.attn1, query, keys)
    del query
    hidden = (hidden.float() + seen * vector(2, sample, piece)).type_as(hidden)
    normed = block.norm2(hidden.float()).type_as(hidden)
    hidden = hidden + visit.context.attended(normed, sample)
    shift, scale = vector(3, sample, piece), vector(4, sample, piece)
    normed = (block.norm3(hidden.float()) * (1 + scale) + shift).type_as(hidden)
    del seen, shift, scale
    forwarded = block.ffn(normed)
    del normed
    gated = forwarded.float() * vector(5, sample, piece)
    del forwarded
    done: torch.Tensor = (hidden.float() + gated).type_as(hidden)
    return done


def _normed(visit: Visit, hidden: torch.Tensor, sample: int, piece: Piece) -> torch.Tensor:
    vector = visit.modulation.vector
    normed = visit.block.norm1(hidden.float()) * (1 + vector(1, sample, piece))
    shifted: torch.Tensor = (normed + vector(0, sample, piece)).type_as(hidden)
    return shifted


def _rotary(visit: Visit, piece: Piece) -> Rotary:
    cos, sin = visit.rotary
    return cos[:, piece[0] : piece[1]], sin[:, piece[0] : piece[1]]
