"""Owns the packing of pixels into the channels that the demo's transformer reads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Each 4 x 4 cell of RGB pixels becomes one latent of 48 channels, in place of a video autoencoder.
CELL = 4
CHANNELS = 3 * CELL * CELL

# Waves along time, height and width tell each patch where it lies. Two products of such waves say
# which side the shape is on at that time, going one way or the other.
WAVES = 4
COORDINATES = 3 * WAVES + 2

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
    latents = latents.reshape(batch, CHANNELS, frames, height // CELL, width // CELL)
    return (latents - _MEAN) * _SCALE


def unpack(latents: Tensor) -> Tensor:
    """The inverse of `pack`: latents `[batch, 48, frames, rows, columns]` as clips of 0 to 1."""
    batch, _, frames, rows, columns = latents.shape
    cells = latents.reshape(batch, 3, CELL, CELL, frames, rows, columns)
    clips = cells.permute(0, 4, 1, 5, 2, 6, 3)
    return clips.reshape(batch, frames, 3, rows * CELL, columns * CELL) / _SCALE + _MEAN


def with_coordinates(latents: Tensor) -> Tensor:
    """Latents `[batch, 48, frames, rows, columns]` with 14 channels that say where each one lies.

    A Wan model knows only how far apart two patches are, which is too little for "starts on the
    left". As image-to-video models do, this one reads further channels beside the noisy ones.
    """
    batch, _, *sizes = latents.shape
    channels: list[Tensor] = []
    for axis, size in enumerate(sizes):
        place = (torch.arange(size, device=latents.device) + 0.5) * (math.pi / size)
        line = [1, 1, 1]
        line[axis] = size
        channels += [torch.cos(wave * place).reshape(line) for wave in range(1, WAVES + 1)]
    time, row, column = channels[::WAVES]
    channels += [time * row, time * column]
    grid = torch.stack([channel.expand(sizes) for channel in channels]).to(latents.dtype)
    return torch.cat([latents, grid.expand(batch, *grid.shape)], dim=1)
