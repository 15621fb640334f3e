"""One run of a block in pieces: all keys and values first, then each piece to the block's end.

piece      0   1   2   0                                   1 ...
does       k,v k,v k,v norm q attention text ffn -> out    norm q ...
alive      hidden states, keys and values; of one piece: q, attention, the wide ones of the ffn
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import torch

from .made_once import let_go

Piece = tuple[int, int]
Keys = tuple[torch.Tensor, torch.Tensor]
Layer = Callable[[torch.Tensor], torch.Tensor]


class Visit(ABC):
    """One run of one block: its parts, what it is given, and how it is cut."""

    pieces: tuple[Piece, ...]
    of_keys: tuple[Any, ...] = ()  # layers that are called for keys and values alone

    @abstractmethod
    def keys_and_values(self, hidden: torch.Tensor, sample: int, piece: Piece) -> Keys:
        """Of a piece of one sample's hidden states, `[1, tokens, dim]`: tokens second."""

    @abstractmethod
    def finished(self, hidden: torch.Tensor, keys: Keys, sample: int, piece: Piece) -> torch.Tensor:
        """A piece of hidden states after the block; `keys` are those of all tokens."""


class Loans(Protocol):
    """What the caller of a block has lent it."""

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Where the result in place of this tensor goes."""

    def spend(self, tensor: torch.Tensor) -> None:
        """It is not read any more."""


def run(visit: Visit, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Hidden states `[batch, tokens, dim]` after the block, in `out`, which may be `hidden`.

    A piece of `hidden` is read for the last time before the same piece of `out` is written.
    """
    for sample in range(hidden.shape[0]):
        own = hidden[sample : sample + 1]
        keys = _all_keys(visit, own, sample)
        if sample == hidden.shape[0] - 1:
            let_go(visit.of_keys)
        for start, stop in visit.pieces:
            done = visit.finished(own[:, start:stop], keys, sample, (start, stop))
            out[sample : sample + 1, start:stop] = done
            del done
    return out


def _all_keys(visit: Visit, own: torch.Tensor, sample: int) -> Keys:
    """Keys and values of one sample's tokens."""
    key = value = None
    for start, stop in visit.pieces:
        some = visit.keys_and_values(own[:, start:stop], sample, (start, stop))
        if key is None or value is None:
            key, value = (part.new_empty((1, own.shape[1], *part.shape[2:])) for part in some)
        key[:, start:stop], value[:, start:stop] = some
        del some
    assert key is not None, "there is a piece"
    assert value is not None, "it comes with the key"
    return key, value


def run_between(
    visit: Visit,
    layers: tuple[Layer | None, Layer | None],
    states: tuple[torch.Tensor, torch.Tensor],
    loan: Loans,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """A VACE block: the hint for its layer, and the control states after it.

    `layers`: the projection into the block and the one out of it, where it has them. `states`:
    hidden states and control states, `[batch, tokens, dim]`; only the first block reads the former.
    """
    (into, outof), (hidden, control) = layers, states
    out = loan.take(control)
    if into is not None:
        for where in _everywhere(control.shape[0], visit.pieces):
            out[where] = into(control[where]) + hidden[where]
        if out is not control:
            loan.spend(control)
        let_go([into])
        control = out
        loan.spend(hidden)
    run(visit, control, out)
    return _hint(outof, out, visit.pieces), out


def _hint(
    layer: Layer | None, control: torch.Tensor, pieces: tuple[Piece, ...]
) -> torch.Tensor | None:
    """Made when keys and values are gone: they are as large."""
    if layer is None:
        return None
    hint = None
    for where in _everywhere(control.shape[0], pieces):
        some = layer(control[where])
        if hint is None:
            hint = some.new_empty((*control.shape[:2], some.shape[2]))
        hint[where] = some
    return hint


def _everywhere(samples: int, pieces: tuple[Piece, ...]) -> list[tuple[slice, slice]]:
    return [
        (slice(sample, sample + 1), slice(*piece)) for sample in range(samples) for piece in pieces
    ]
