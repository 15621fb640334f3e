"""Which LoRAs were asked for, and how strongly each is added: checked once, at the door."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..errors import ArgsError
from ..paths import is_there

_HOW = 'give [("file.safetensors", 1.0), ...]'


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file (or a folder with one) and its strength; any adapter file of that family.

    `partial`: leave out, and say so, what the model has no place for; else such a file is refused.
    """

    path: str | os.PathLike[str]
    strength: float = 1.0
    partial: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, os.PathLike)):
            raise ArgsError(f"a LoRA was given as a {type(self.path).__name__}: {_HOW}")
        number = isinstance(self.strength, Real) and not isinstance(self.strength, bool)
        if not number or not math.isfinite(self.strength):
            raise ArgsError(
                f"strength {self.strength!r} was asked for the LoRA {os.fspath(self.path)!r}, and "
                "a strength is a finite number: give 1.0 for the LoRA as it was trained"
            )


AnyLora = Lora | str | os.PathLike[str] | tuple[str | os.PathLike[str], float]


def as_loras(given: Sequence[AnyLora] | None) -> tuple[Lora, ...]:
    """The LoRAs that were asked for, in the order in which they are added. Raises ArgsError."""
    if given is None:
        return ()
    if isinstance(given, (str, bytes, os.PathLike, Lora)) or not isinstance(given, Sequence):
        raise ArgsError(f"loras={given!r} was given, and it is a list: {_HOW}")
    return tuple(map(_as_lora, given))


def parse_loras(*given: Sequence[str] | None, partial: bool) -> tuple[tuple[Lora, ...], ...]:
    """Lists of `FILE` or `FILE:STRENGTH`, as the command line takes them. Raises ArgsError."""
    found = tuple(tuple(_parsed(text, partial) for text in texts or ()) for texts in given)
    if partial and not any(found):
        raise ArgsError("--lora-partial was given without a LoRA: leave it out, or add --lora FILE")
    return found


def _parsed(text: str, partial: bool) -> Lora:
    path, _, strength = text.rpartition(":")
    if not path or is_there(text):
        return Lora(text, partial=partial)
    try:
        number = float(strength)
    except ValueError as error:
        if not is_there(path):
            return Lora(text, partial=partial)  # a colon of the path's own
        raise ArgsError(
            f"--lora {text!r} names a strength that is no number: write FILE or FILE:0.8"
        ) from error
    return Lora(path, number, partial)


def _as_lora(given: Any) -> Lora:
    if isinstance(given, Lora):
        return given
    if isinstance(given, (str, os.PathLike)):
        return Lora(given)
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return Lora(given[0], given[1])
    raise ArgsError(f"{given!r} was given as a LoRA: {_HOW}")
