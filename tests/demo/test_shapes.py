"""Drawn clips: what the training data shows, and that the judge reads it right."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from blockswap.demo.judge import judge
from blockswap.demo.latents import CHANNELS, COORDINATES, pack, unpack, with_coordinates
from blockswap.demo.prompt import COLOURS, DIRECTIONS, SHAPES, Prompt, tokens_of
from blockswap.demo.shapes import (
    RGB,
    STEP,
    ClipSize,
    Scenes,
    draw_scenes,
    random_scenes,
    random_tokens,
)

EVERY_PROMPT = [Prompt(*words) for words in itertools.product(COLOURS, SHAPES, DIRECTIONS)]


def draw(prompts: list[Prompt], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return draw_scenes(random_scenes(tokens_of(prompts), generator))


def still(shape: str, radius: float, centre: tuple[float, float] = (16.0, 16.0)) -> Tensor:
    """One white shape on black: `[height, width]`."""
    scene = Scenes(
        colour=torch.ones(1, 3),
        shape=torch.tensor([SHAPES.index(shape)]),
        centre=torch.tensor(centre).reshape(1, 1, 2),
        radius=torch.tensor([radius]),
        background=torch.zeros(1),
    )
    return draw_scenes(scene, ClipSize(frames=1))[0, 0, 0]


def test_clips_have_the_size_and_range_asked_for() -> None:
    size = ClipSize(frames=5, height=24, width=40)
    generator = torch.Generator().manual_seed(3)
    clips = draw_scenes(random_scenes(random_tokens(7, generator), generator, size), size)
    assert clips.shape == (7, 5, 3, 24, 40)
    assert clips.dtype == torch.float32
    assert clips.min() >= 0.0
    assert clips.max() <= 1.0


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("ball", math.pi * 6.0**2),
        ("square", (2 * 0.9 * 6.0) ** 2),
        # An equilateral triangle with inner radius r covers 3 * sqrt(3) * r * r.
        ("triangle", 3 * math.sqrt(3) * (0.7 * 6.0) ** 2),
    ],
)
def test_shapes_cover_the_area_of_their_geometry(shape: str, area: float) -> None:
    assert float(still(shape, 6.0).sum()) == pytest.approx(area, rel=0.02)


def test_triangle_points_up_and_square_is_as_wide_everywhere() -> None:
    widths = {name: still(name, 6.0).sum(dim=1) for name in SHAPES}
    triangle = widths["triangle"][11:21]
    assert bool((triangle.diff() > 0.5).all())
    square = widths["square"][11:21]
    assert float(square.max() - square.min()) < 1e-5


def test_edges_are_anti_aliased_and_follow_fractions_of_a_pixel() -> None:
    here, there = still("ball", 6.0), still("ball", 6.0, (16.25, 16.0))
    assert bool(((here > 0.05) & (here < 0.95)).any())
    columns = torch.arange(32) + 0.5
    middles = [float((ball.sum(dim=0) * columns).sum() / ball.sum()) for ball in (here, there)]
    assert middles == pytest.approx([16.0, 16.25], abs=0.02)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_paths_lead_straight_in_the_direction_asked_for(direction: str) -> None:
    generator = torch.Generator().manual_seed(5)
    tokens = tokens_of([Prompt("red", "ball", direction)] * 20)
    path = random_scenes(tokens, generator).centre
    moves = path.diff(dim=1)
    along = moves @ torch.tensor(STEP[direction])
    assert bool((along > 1.4).all())
    torch.testing.assert_close(moves.norm(dim=-1), along)
    assert float(path[:, 4].std(dim=0).max()) > 1.0, "starting places hardly differ"


def test_colours_are_those_of_the_palette() -> None:
    for colour in COLOURS:
        clip = draw([Prompt(colour, "ball", "up")])[0]
        brightest = clip.permute(0, 2, 3, 1).reshape(-1, 3)
        found = brightest[brightest.sum(dim=1).argmax()]
        torch.testing.assert_close(found, torch.tensor(RGB[colour]), atol=1e-5, rtol=0)


def test_same_seed_same_clip_and_another_seed_another() -> None:
    assert torch.equal(draw(EVERY_PROMPT[:4], 1), draw(EVERY_PROMPT[:4], 1))
    assert not torch.equal(draw(EVERY_PROMPT[:4], 1), draw(EVERY_PROMPT[:4], 2))


def test_random_prompts_use_every_word() -> None:
    tokens = random_tokens(500, torch.Generator().manual_seed(0))
    for column, kind in enumerate((COLOURS, SHAPES, DIRECTIONS)):
        assert len(tokens[:, column].unique()) == len(kind)


def test_latents_hold_the_pixels_and_nothing_else() -> None:
    clips = draw(EVERY_PROMPT[:5])
    latents = pack(clips)
    assert latents.shape == (5, CHANNELS, 9, 8, 8)
    torch.testing.assert_close(unpack(latents), clips)
    # The first cell of latents is the top left 4 x 4 pixels of the frame.
    corner = latents[0, :, 0, 0, 0].reshape(3, 4, 4)
    torch.testing.assert_close(corner / 2 + 0.12, clips[0, 0, :, :4, :4])


def test_coordinates_tell_every_place_apart_and_leave_the_latents_alone() -> None:
    latents = pack(draw(EVERY_PROMPT[:2]))
    joined = with_coordinates(latents)
    assert joined.shape == (2, CHANNELS + COORDINATES, 9, 8, 8)
    assert torch.equal(joined[:, :CHANNELS], latents)
    places = joined[0, CHANNELS:].reshape(COORDINATES, -1).T
    gaps = torch.cdist(places, places) + 10 * torch.eye(len(places))
    assert float(gaps.min()) > 0.2


def test_judge_reads_every_drawn_prompt_right() -> None:
    prompts = EVERY_PROMPT[::3]
    clips = (draw(prompts, 11) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2)
    verdicts = [judge(clip) for clip in clips]
    assert [verdict.prompt for verdict in verdicts] == prompts
    assert min(verdict.overlap for verdict in verdicts) > 0.85


def test_judge_finds_no_clean_shape_in_noise() -> None:
    noise = torch.randint(0, 256, (9, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    assert judge(noise.to(torch.uint8)).overlap < 0.4
