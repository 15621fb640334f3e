"""Owns the packing of pixels into the channels that the demo's transformer reads."""

from __future__ import annotations

from torch import Tensor

# Each 4 x 4 cell of RGB pixels becomes one latent of 48 channels, in place of a video autoencoder.
CELL = 4
CHANNELS = 3 * CELL * CELL

# Nearly all of a clip is dark: measured from the mean grey level, latents average to zero.
_MEAN = 0.12
_SCALE = 2.0


def pack(clips: Tensor) -> Tensor:
    """Clips `[batch, frames, 3, height, width]` of 0 to 1 as latents.

    Returns `[batch, 48, frames, height / 4, width / 4]`.
    """
    batch, frames, colours, height, width = clips.shape
    cells = clips.reshape(batch, frames, colours, height // CELL, CELL, width // CELL, CELL)
    latents = cells.permute(0, 2, 4, 6, 1, 3, 5)
    return latents.reshape(batch, CHANNELS, frames, height // CELL, width // CELL).sub(_MEAN) * _SCALE


def unpack(latents: Tensor) -> Tensor:
    """The inverse of `pack`: latents `[batch, 48, frames, rows, columns]` as clips of 0 to 1."""
    batch, _, frames, rows, columns = latents.shape
    cells = latents.reshape(batch, 3, CELL, CELL, frames, rows, columns)
    clips = cells.permute(0, 4, 1, 5, 2, 6, 3)
    return clips.reshape(batch, frames, 3, rows * CELL, columns * CELL) / _SCALE + _MEAN
