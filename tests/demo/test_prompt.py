"""Prompts of the demo model: reading, refusing, encoding."""

from __future__ import annotations

import math

import pytest
import torch

from blockswap.demo.prompt import (
    COLOURS,
    DIRECTIONS,
    NULL_TOKEN,
    SHAPES,
    TEXT_DIM,
    VOCABULARY,
    Prompt,
    PromptError,
    encode_tokens,
    parse_prompt,
    tokens_of,
)
from blockswap.errors import BlockSwapError

RED_BALL_RIGHT = Prompt("red", "ball", "right")


@pytest.mark.parametrize(
    "text",
    [
        "red ball right",
        "right ball red",
        "Ball RIGHT red",
        " red,ball , right ",
        "red red ball right",
    ],
)
def test_words_may_come_in_any_order_and_case(text: str) -> None:
    assert parse_prompt(text) == RED_BALL_RIGHT


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", Prompt()),
        ("blue", Prompt(colour="blue")),
        ("up", Prompt(direction="up")),
        ("down triangle", Prompt(shape="triangle", direction="down")),
    ],
)
def test_missing_words_are_left_to_the_model(text: str, wanted: Prompt) -> None:
    assert parse_prompt(text) == wanted


def test_unknown_word_is_refused_in_one_sentence_that_lists_what_is_known() -> None:
    with pytest.raises(PromptError) as caught:
        parse_prompt("red zebra right")
    message = str(caught.value)
    assert "'zebra'" in message
    assert all(word in message for word in (*COLOURS, *SHAPES, *DIRECTIONS))
    assert "." not in message
    assert "\n" not in message


def test_two_words_of_a_kind_are_refused() -> None:
    with pytest.raises(
        PromptError, match="'red' and 'blue' were given, and a prompt takes one colour"
    ):
        parse_prompt("red blue ball")


def test_prompt_errors_can_be_caught_as_what_they_are() -> None:
    assert issubclass(PromptError, BlockSwapError)
    assert issubclass(PromptError, ValueError)


def test_the_null_word_cannot_be_written() -> None:
    with pytest.raises(PromptError):
        parse_prompt(VOCABULARY[NULL_TOKEN])


def test_tokens_keep_kind_order_and_mark_what_is_missing() -> None:
    tokens = tokens_of([RED_BALL_RIGHT, Prompt(shape="ball"), Prompt()])
    assert tokens.dtype == torch.int64
    assert [VOCABULARY[number] for number in tokens[0]] == ["red", "ball", "right"]
    assert tokens[1].tolist() == [NULL_TOKEN, VOCABULARY.index("ball"), NULL_TOKEN]
    assert tokens[2].tolist() == [NULL_TOKEN] * 3


def test_no_prompts_make_an_empty_batch() -> None:
    assert tokens_of([]).shape == (0, 3)


def test_encoding_gives_each_word_its_own_vector_of_unit_size() -> None:
    every_word = encode_tokens(torch.arange(len(VOCABULARY)).unsqueeze(0))
    assert every_word.shape == (1, len(VOCABULARY), TEXT_DIM)
    products = every_word[0] @ every_word[0].T
    torch.testing.assert_close(products, TEXT_DIM * torch.eye(len(VOCABULARY)))
    assert math.isclose(float(every_word.square().mean()), 1.0, rel_tol=1e-6)
