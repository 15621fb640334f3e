"""Owns the drawn clips: coloured shapes gliding over a dark background, the demo's ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .prompt import COLOURS, DIRECTIONS, SHAPES, VOCABULARY

RGB: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.1, 0.1),
    "green": (0.1, 0.9, 0.1),
    "blue": (0.1, 0.2, 1.0),
    "yellow": (1.0, 0.9, 0.1),
    "purple": (0.8, 0.1, 0.9),
    "white": (1.0, 1.0, 1.0),
}
# Steps in (x, y) with y pointing down, as rows of an image do.
STEP: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
# How far a shape's centre of mass lies below its path, in radii: the triangle is lowered so that
# its bounding box is centred on the path.
DROP: dict[str, float] = {"ball": 0.0, "square": 0.0, "triangle": 0.35}


@dataclass(frozen=True)
class ClipSize:
    """Size of a clip in frames and pixels."""

    frames: int = 9
    height: int = 32
    width: int = 32


@dataclass(frozen=True)
class Ranges:
    """Uniform ranges from which a scene is drawn, in pixels and grey levels of 0 to 1."""

    radius: tuple[float, float] = (6.0, 6.0)
    speed: tuple[float, float] = (2.0, 2.0)
    # Distance of the middle of the path from the middle of the picture.
    along: tuple[float, float] = (0.0, 0.0)
    across: tuple[float, float] = (-3.0, 3.0)
    background: tuple[float, float] = (0.05, 0.05)


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes, each one shape on a straight path."""

    colour: Tensor  # [batch, 3], 0 to 1
    shape: Tensor  # [batch], int64 index into SHAPES
    centre: Tensor  # [batch, frames, 2], (x, y) in pixels
    radius: Tensor  # [batch], pixels
    background: Tensor  # [batch], grey level of 0 to 1


def random_tokens(batch: int, generator: torch.Generator) -> Tensor:
    """Complete random prompts as word numbers: int64 `[batch, 3]`."""
    columns = []
    for words in (COLOURS, SHAPES, DIRECTIONS):
        first = VOCABULARY.index(words[0])
        columns.append(torch.randint(first, first + len(words), (batch,), generator=generator))
    return torch.stack(columns, dim=1)


def random_scenes(
    tokens: Tensor,
    generator: torch.Generator,
    size: ClipSize | None = None,
    ranges: Ranges | None = None,
) -> Scenes:
    """Scenes that fit complete prompts given as word numbers `[batch, 3]`."""
    size, ranges = size or ClipSize(), ranges or Ranges()

    def uniform(low_high: tuple[float, float]) -> Tensor:
        low, high = low_high
        return low + (high - low) * torch.rand(len(tokens), generator=generator)

    step = _rows(STEP, DIRECTIONS)[tokens[:, 2] - VOCABULARY.index(DIRECTIONS[0])]
    middle = torch.tensor([size.width / 2, size.height / 2])
    # Swapping x and y of a step along one axis gives a step along the other.
    middle = middle + step * uniform(ranges.along)[:, None]
    middle = middle + step.flip(1).abs() * uniform(ranges.across)[:, None]
    moment = torch.arange(size.frames) - (size.frames - 1) / 2
    travel = moment[None, :, None] * step[:, None, :] * uniform(ranges.speed)[:, None, None]
    return Scenes(
        colour=_rows(RGB, COLOURS)[tokens[:, 0] - VOCABULARY.index(COLOURS[0])],
        shape=tokens[:, 1] - VOCABULARY.index(SHAPES[0]),
        centre=middle[:, None, :] + travel,
        radius=uniform(ranges.radius),
        background=uniform(ranges.background),
    )


def draw_scenes(scenes: Scenes, size: ClipSize | None = None) -> Tensor:
    """Anti-aliased clips: float32 `[batch, frames, 3, height, width]` of 0 to 1."""
    size = size or ClipSize()
    rows = torch.arange(size.height) + 0.5
    columns = torch.arange(size.width) + 0.5
    x = columns[None, None, None, :] - scenes.centre[..., 0, None, None]
    y = rows[None, None, :, None] - scenes.centre[..., 1, None, None]
    distance = _signed_distance(x, y, scenes.shape, scenes.radius)
    cover = (0.5 - distance).clamp(0.0, 1.0).unsqueeze(2)
    background = scenes.background[:, None, None, None, None]
    return background + cover * (scenes.colour[:, None, :, None, None] - background)


def _signed_distance(x: Tensor, y: Tensor, shape: Tensor, radius: Tensor) -> Tensor:
    """Pixels from the outline, negative inside: `[batch, frames, height, width]`.

    `x` is `[batch, frames, 1, width]`, `y` is `[batch, frames, height, 1]`.
    """
    radius, shape = radius[:, None, None, None], shape[:, None, None, None]
    ball = torch.sqrt(x * x + y * y) - radius
    square = torch.maximum(x.abs(), y.abs()) - 0.9 * radius
    low = y - DROP["triangle"] * radius
    triangle = torch.maximum(low, 0.75**0.5 * x.abs() - 0.5 * low) - 0.7 * radius
    by_name = {"ball": ball, "square": square, "triangle": triangle}
    return torch.stack([by_name[name] for name in SHAPES]).gather(
        0, shape.expand_as(ball).unsqueeze(0)
    )[0]


def _rows(table: Mapping[str, tuple[float, ...]], names: tuple[str, ...]) -> Tensor:
    return torch.tensor([table[name] for name in names])
