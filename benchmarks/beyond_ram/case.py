"""What a benchmark of a checkpoint beyond the RAM says of itself: model, clips, limits, targets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

OPENING_SECONDS = 10.0
OVER_BOUND = 1.1
ROUNDS = 3
READERS = (1, 4)  # how many raw reads at a time are tried; the faster counts


class Clip(Protocol):
    """A clip to be made, in words that a table shows."""

    @property
    def words(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Case:
    """One model in one limit of memory.

    `file` is written by `make` where it is not there; `opened` says what of it is opened. The
    blocks are the members of `lists`. `inputs` are those of a forward of the opened model, whose
    blocks are all streamed. The first clip is the smallest: a forward of it runs before each that
    is timed.
    """

    name: str
    title: str
    model: str
    limit_bytes: int
    disk_bytes: int
    file: str
    make: Callable[[Path], object]
    opened: Callable[[Path], Path]
    lists: Sequence[str]
    clips: Sequence[Any]
    inputs: Callable[[Any, Any], Mapping[str, Any]]
