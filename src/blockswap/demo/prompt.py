"""Owns the words the demo model knows and turns a prompt into its text embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgsError

COLOURS: tuple[str, ...] = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES: tuple[str, ...] = ("ball", "square", "triangle")
DIRECTIONS: tuple[str, ...] = ("left", "right", "up", "down")

NULL_WORD = "<any>"
VOCABULARY: tuple[str, ...] = (NULL_WORD, *COLOURS, *SHAPES, *DIRECTIONS)
NULL_TOKEN = VOCABULARY.index(NULL_WORD)

# A Wan model reads a row of text vectors; this one always reads colour, shape and direction.
WORDS_PER_PROMPT = 3
TEXT_DIM = 32


class PromptError(ArgsError):
    """A prompt that the demo model cannot read."""


@dataclass(frozen=True)
class Prompt:
    """What to draw; `None` leaves that choice to the model."""

    colour: str | None = None
    shape: str | None = None
    direction: str | None = None

    @property
    def words(self) -> tuple[str | None, str | None, str | None]:
        """The three words in the order in which the model reads them."""
        return self.colour, self.shape, self.direction


def parse_prompt(text: str) -> Prompt:
    """Reads words such as ``"red ball right"`` in any order; every kind of word may be left out."""
    kinds = {"colour": COLOURS, "shape": SHAPES, "direction": DIRECTIONS}
    chosen: dict[str, str] = {}
    for word in text.lower().replace(",", " ").split():
        kind = next((name for name, known in kinds.items() if word in known), None)
        if kind is None:
            raise PromptError(f"the demo model does not know the word {word!r}: {_known_words()}")
        if chosen.get(kind, word) != word:
            raise PromptError(
                f"{chosen[kind]!r} and {word!r} were given, and a prompt takes one {kind}: leave "
                "one of them out"
            )
        chosen[kind] = word
    return Prompt(**chosen)


def tokens_of(prompts: Sequence[Prompt]) -> Tensor:
    """Word numbers of prompts: int64 `[batch, words]`, `NULL_TOKEN` where a word is left out."""
    rows = [[VOCABULARY.index(word or NULL_WORD) for word in prompt.words] for prompt in prompts]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), WORDS_PER_PROMPT)


def encode_tokens(tokens: Tensor) -> Tensor:
    """Word numbers `[batch, words]` as text vectors: float32 `[batch, words, text_dim]`."""
    one_hot = torch.nn.functional.one_hot(tokens, TEXT_DIM)
    # Scaled to a root mean square of one, the size that a text encoder's output would have.
    return one_hot.to(torch.float32) * math.sqrt(TEXT_DIM)


def _known_words() -> str:
    groups = (("colours", COLOURS), ("shapes", SHAPES), ("directions", DIRECTIONS))
    return "; ".join(f"{name} are {', '.join(words)}" for name, words in groups)
