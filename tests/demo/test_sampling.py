"""Sampling: the loop itself on stand-ins, then what the shipped model draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from blockswap.demo.judge import judge
from blockswap.demo.latents import CHANNELS, COORDINATES, pack
from blockswap.demo.prompt import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    Prompt,
    PromptError,
    encode_tokens,
    parse_prompt,
    tokens_of,
)
from blockswap.demo.sampling import SamplingSettings, generate
from blockswap.demo.shapes import RGB, STEP, ClipSize, draw_scenes, random_scenes
from blockswap.errors import ArgsError


class Oracle:
    """A stand-in that always names the same clean clip, and remembers how it was called."""

    def __init__(self, clean: Tensor) -> None:
        self.clean = clean
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **kwargs: Any) -> tuple[Tensor]:
        self.calls.append(kwargs)
        return (self.clean.to(kwargs["hidden_states"].dtype),)


@pytest.fixture
def clip() -> Tensor:
    """A drawn clip `[1, frames, 3, height, width]`."""
    generator = torch.Generator().manual_seed(0)
    return draw_scenes(random_scenes(tokens_of([Prompt("blue", "square", "up")]), generator))


def test_a_model_that_knows_the_answer_gets_it_drawn(clip: Tensor) -> None:
    frames = generate(Oracle(pack(clip)), "blue square up")
    assert frames.shape == (9, 32, 32, 3)
    assert frames.dtype == torch.uint8
    want = (clip[0] * 255).permute(0, 2, 3, 1)
    assert float((frames.float() - want).abs().max()) <= 1.0


def test_the_model_is_called_as_any_user_would(clip: Tensor) -> None:
    oracle, told = Oracle(pack(clip)), []
    settings = SamplingSettings(steps=4, guidance=2.0)
    generate(oracle, "red", settings, dtype=torch.bfloat16, progress=lambda *now: told.append(now))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(oracle.calls) == 8, "two passes a step: without words and with them"
    times = [float(call["timestep"]) for call in oracle.calls]
    assert times == sorted(times, reverse=True)
    assert times[0] == 1000.0
    for call in oracle.calls:
        assert call["return_dict"] is False
        assert call["hidden_states"].shape == (1, CHANNELS + COORDINATES, 9, 8, 8)
        assert call["hidden_states"].dtype == torch.bfloat16
        assert call["encoder_hidden_states"].dtype == torch.bfloat16
    texts = [call["encoder_hidden_states"].float() for call in oracle.calls[:2]]
    assert torch.allclose(texts[0], encode_tokens(tokens_of([Prompt()])), rtol=0.01)
    assert torch.allclose(texts[1], encode_tokens(tokens_of([Prompt("red")])), rtol=0.01)


def test_guidance_of_one_needs_one_pass_a_step(clip: Tensor) -> None:
    oracle = Oracle(pack(clip))
    generate(oracle, "red", SamplingSettings(steps=3, guidance=1.0))
    assert len(oracle.calls) == 3


def test_guidance_leads_away_from_the_answer_without_words() -> None:
    def model(**kwargs: Any) -> tuple[Tensor]:
        latents = kwargs["hidden_states"][:, :CHANNELS]
        without = torch.allclose(
            kwargs["encoder_hidden_states"], encode_tokens(tokens_of([Prompt()]))
        )
        return (torch.full_like(latents, 0.2 if without else 0.4),)

    levels = [
        generate(model, "red", SamplingSettings(steps=2, guidance=guidance)).float().mean()
        for guidance in (1.0, 2.0)
    ]
    # 0.2 more in latents is 0.1 more in pixels, thus 25.5 grey levels of 255.
    assert float(levels[1] - levels[0]) == pytest.approx(25.5, abs=1.0)


def test_other_sizes_of_clip_can_be_asked_for() -> None:
    size = ClipSize(frames=3, height=16, width=40)
    oracle = Oracle(torch.zeros(1, CHANNELS, 3, 4, 10))
    assert generate(oracle, "red", SamplingSettings(steps=1, size=size)).shape == (3, 16, 40, 3)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"size": ClipSize(frames=0)}, "frames must be at least 1, not 0"),
        ({"size": ClipSize(height=30)}, "multiples of 8, not 30 and 32"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgsError, match=told):
        SamplingSettings(**wrong)


def test_a_prompt_that_cannot_be_read_is_refused_before_any_work(clip: Tensor) -> None:
    oracle = Oracle(pack(clip))
    with pytest.raises(PromptError):
        generate(oracle, "red zebra")
    assert oracle.calls == []


def test_same_seed_same_clip_and_another_seed_another(demo_model: Any) -> None:
    clips = [
        generate(demo_model, "red ball right", SamplingSettings(seed=seed, steps=3))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(clips[0], clips[1])
    assert not torch.equal(clips[0], clips[2])


@pytest.mark.parametrize(
    "text",
    [
        "red ball right",
        "green square left",
        "blue triangle up",
        "yellow ball down",
        "purple square right",
        "white triangle left",
    ],
)
def test_shipped_model_draws_what_it_is_asked_for(demo_model: Any, text: str) -> None:
    frames = generate(demo_model, text, SamplingSettings())
    verdict = judge(frames)
    wanted = parse_prompt(text)
    assert verdict.prompt == wanted
    assert verdict.overlap > 0.75
    along = sum(a * b for a, b in zip(verdict.travel, STEP[str(wanted.direction)], strict=True))
    assert along > 10.0, "a drawn shape travels 16 pixels"


def test_red_ball_right_by_plain_arithmetic(demo_model: Any) -> None:
    """The same claim without the judge: the middle of the red moves right, not up or down."""
    frames = generate(demo_model, "red ball right", SamplingSettings()).float()
    red, green, blue = frames.unbind(-1)
    ink = (red - torch.maximum(green, blue)).clamp(min=0)
    ink = ink * (ink > 60)
    mass = ink.sum(dim=(1, 2))
    assert bool((mass > 60 * 255).all()), "about 113 pixels of red in every frame"
    x = (ink.sum(dim=1) * torch.arange(32)).sum(dim=1) / mass
    y = (ink.sum(dim=2) * torch.arange(32)).sum(dim=1) / mass
    assert bool((x.diff() > 0.5).all()), "it moves right from each frame to the next"
    assert float(y.max() - y.min()) < 4.0


def test_words_left_out_are_chosen_by_the_model(demo_model: Any) -> None:
    frames = generate(demo_model, "green", SamplingSettings(seed=2, steps=8))
    assert judge(frames).prompt.colour == "green"


def test_shipped_dtypes_draw_the_same_clip(demo_model: Any) -> None:
    """bf16 weights beside fp32 norms, as the file has them, on a few steps."""
    from blockswap.demo.weights import load_resident

    settings = SamplingSettings(seed=1, steps=4, guidance=1.0)
    exact = generate(demo_model, "red ball right", settings)
    mixed = generate(load_resident(), "red ball right", settings, dtype=torch.bfloat16)
    assert judge(mixed).prompt == judge(exact).prompt
    assert float((mixed.float() - exact.float()).abs().mean()) < 6.0


def test_the_palette_covers_the_vocabulary() -> None:
    assert set(RGB) == set(COLOURS)
    assert set(STEP) == set(DIRECTIONS)
    assert len(SHAPES) == 3
