"""Owns the answer to what a clip shows, found by measuring it and never by asking the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .prompt import COLOURS, DIRECTIONS, SHAPES, Prompt
from .shapes import DROP, RGB, STEP, ClipSize, Scenes, draw_scenes

# Which radii the best template may have, and where it is looked for around the centroid, in pixels.
_RADII = (5.5, 6.0, 6.5)
_OFFSETS = (-1.0, -0.5, 0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Verdict:
    """What a clip shows, and how cleanly."""

    prompt: Prompt
    travel: tuple[float, float]  # (x, y) from the first frame to the last, in pixels
    overlap: float  # share of the drawn shape's area that the clip has too, 0 to 1


def judge(clip: Tensor) -> Verdict:
    """Names colour, shape and direction in a uint8 clip `[frames, height, width, 3]`."""
    pixels = clip.to(torch.float32) / 255.0
    background = pixels.reshape(-1, 3).median(dim=0).values
    contrast = pixels - background
    colour = _colour(contrast, background)
    cover = _cover(contrast, torch.tensor(RGB[colour]) - background)
    centre = _centroids(cover)
    travel = centre[-1] - centre[0]
    along = torch.tensor([STEP[name] for name in DIRECTIONS]) @ travel
    shape, overlap = _shape(cover, centre)
    prompt = Prompt(colour, shape, DIRECTIONS[int(along.argmax())])
    return Verdict(prompt, (float(travel[0]), float(travel[1])), overlap)


def _colour(contrast: Tensor, background: Tensor) -> str:
    """The nearest known colour to the pixels `[frames, height, width, 3]` that stand out most."""
    strength = contrast.abs().amax(dim=-1)
    chosen = contrast[strength > 0.7 * strength.max()] + background
    gap = torch.tensor([RGB[name] for name in COLOURS]) - chosen.mean(dim=0)
    return COLOURS[int(gap.square().sum(dim=1).argmin())]


def _cover(contrast: Tensor, ink: Tensor) -> Tensor:
    """How much of each pixel is inked: `[frames, height, width]` of 0 to 1."""
    return ((contrast @ ink) / ink.square().sum()).clamp(0.0, 1.0)


def _centroids(cover: Tensor) -> Tensor:
    """Centres of mass `[frames, 2]` as (x, y) in pixels."""
    _, height, width = cover.shape
    # Faint haze far from the shape would pull the centre towards the middle of the picture.
    solid = cover * (cover > 0.3)
    mass = solid.sum(dim=(1, 2)).clamp(min=1e-6)
    x = (solid.sum(dim=1) * (torch.arange(width) + 0.5)).sum(dim=1) / mass
    y = (solid.sum(dim=2) * (torch.arange(height) + 0.5)).sum(dim=1) / mass
    return torch.stack([x, y], dim=1)


def _shape(cover: Tensor, centre: Tensor) -> tuple[str, float]:
    """The shape whose drawing overlaps the cover best, and by how much (intersection by union)."""
    _, height, width = cover.shape
    grid = torch.cartesian_prod(
        torch.arange(len(SHAPES), dtype=torch.float32),
        torch.tensor(_RADII),
        torch.tensor(_OFFSETS),
        torch.tensor(_OFFSETS),
    )
    shape, radius = grid[:, 0].to(torch.int64), grid[:, 1]
    drop = torch.tensor([DROP[name] for name in SHAPES])[shape] * radius
    scenes = Scenes(
        colour=torch.ones(len(grid), 3),
        shape=shape,
        centre=centre - torch.stack([0 * drop, drop], dim=1)[:, None] + grid[:, None, 2:],
        radius=radius,
        background=torch.zeros(len(grid)),
    )
    drawn = draw_scenes(scenes, ClipSize(len(cover), height, width))[:, :, 0]
    both = torch.minimum(drawn, cover).sum(dim=(2, 3))
    either = drawn.sum(dim=(2, 3)) + cover.sum(dim=(1, 2)) - both
    # Each frame may choose its place, but shape and size must hold through the whole clip.
    overlap = (
        (both / either).reshape(len(SHAPES), len(_RADII), -1, len(cover)).amax(dim=2).mean(dim=2)
    )
    best = overlap.amax(dim=1)
    return SHAPES[int(best.argmax())], float(best.max())
