"""Shift, scale and gate of a block for a piece of tokens, from one timestep or one for each token.

Wan2.2's image-to-video model of 5B has a timestep for each token, and few that differ: the first
frame's and all others'. Made for every token they are the largest tensor of a forward
(six vectors a token); `TokenTimes` makes each of them once, and says which token has which.
"""

from dataclasses import dataclass
from typing import Any

import torch

LEAST_ROWS = 64  # fewer rows go through other kernels, which add in another order


@dataclass(frozen=True)
class TokenTimes:
    """Time projections of the timesteps that differ, `[1, rows, 6, dim]`, and each token's row.

    `rows_of` is `[batch, tokens]`.
    """

    projections: torch.Tensor
    rows_of: torch.Tensor


class PieceVectors:
    """The vectors of one piece of tokens, each made when it is asked for."""

    def __init__(
        self, rows: torch.Tensor, *, of_tokens: torch.Tensor | None = None,
        table: torch.Tensor | None = None, widen: bool = True,
    ) -> None:  # fmt: skip
        """`rows` `[1 or rows, vectors, dim]`, and which of them each token has; or `[1, tokens,

        vectors, dim]` without the `table` `[1, vectors, dim]` that is added to each.
        """
        self._rows, self._of_tokens, self._table, self._widen = rows, of_tokens, table, widen

    def vector(self, number: int) -> torch.Tensor:
        """`[1, 1 or tokens, dim]`."""
        if self._table is not None:
            own = self._rows[:, :, number]
            return self._table[:, number : number + 1] + (own.float() if self._widen else own)
        if self._of_tokens is None:
            return self._rows[:, number : number + 1]
        return self._rows[:, number][self._of_tokens].unsqueeze(0)


class Modulation:
    """The vectors of one block's visit: its table and the time projections, added up.

    A block adds them in fp32 (`widen`), the output head in the dtypes that they have.
    """

    def __init__(
        self, table: torch.Tensor, times: "torch.Tensor | TokenTimes", *, widen: bool = True
    ) -> None:
        """`table` `[1, vectors, dim]`; `times` `[batch, vectors, dim]` or with tokens before."""
        self._table, self._times, self._widen = table, times, widen
        self._rows: torch.Tensor | None = None
        if isinstance(times, TokenTimes):
            self._rows = (table.unsqueeze(0) + self._cast(times.projections))[0]
        elif times.dim() == 3:
            self._rows = table + self._cast(times)

    def of(self, sample: int, piece: tuple[int, int]) -> PieceVectors:
        """The vectors for the tokens of a piece of one sample."""
        start, stop = piece
        times, rows = self._times, self._rows
        if isinstance(times, TokenTimes):
            assert rows is not None, "made with the times"
            return PieceVectors(rows, of_tokens=of_sample(times.rows_of, sample)[0, start:stop])
        if rows is not None:
            return PieceVectors(of_sample(rows, sample))
        own = of_sample(times, sample)[:, start:stop]
        return PieceVectors(own, table=self._table, widen=self._widen)

    def _cast(self, times: torch.Tensor) -> torch.Tensor:
        return times.float() if self._widen else times


def of_sample(given: torch.Tensor, sample: int) -> torch.Tensor:
    """What one sample of the batch has, where all may have the same: `[1, ...]`."""
    return given if given.shape[0] == 1 else given[sample : sample + 1]


def distinct_timesteps(timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The timesteps that differ, and for each token which it has; None where they are many.

    `[batch, tokens]` -> `[rows]` and `[batch, tokens]`. There are at least 64 rows, the last one
    repeated. Without data there are taken to be as few as Wan's pipelines give, which is two.
    Waits for the device: how many differ is known there only.
    """
    if timestep.is_meta:
        rows = timestep.new_empty((LEAST_ROWS,))
        return rows, torch.empty(timestep.shape, dtype=torch.int64, device="meta")
    found: Any = torch.unique(timestep, return_inverse=True)
    values, rows_of = found
    if values.numel() > max(LEAST_ROWS, timestep.numel() // 8):
        return None
    missing = max(0, LEAST_ROWS - values.numel())
    return torch.cat([values, values[-1:].expand(missing)]), rows_of
