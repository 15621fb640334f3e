"""What a block list such as "0,2,3-5" means, and which mistakes in it are refused, in what words.

    list  = [ part ] { ( "," | newline ) [ part ] }     blanks around a part are skipped
    part  = [ name ":" ] span                           all parts name their list, or none does
    span  = index | index "-" index                     a range is inclusive
    name  = where a list hangs in the model             "single_transformer_blocks"
    index = one or more ASCII digits, at most 9999      "0-5" is six blocks, "5-0" a mistake

A mistake is told in the user's words: `Invalid range: '3-1'`, `Invalid integer: 'a'`.
"""

import operator
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import SupportsIndex

from ..errors import SelectionError

# No transformer has this many blocks; the bound keeps "0-99999999999" from filling memory.
MOST_INDEX = 9999

_DIGITS = re.compile(r"[0-9]+")
_NAME = re.compile(r"[^\W\d]\w*(\.\w+)*")
_MOST_QUOTED = 80


@dataclass(frozen=True, slots=True)
class BlockPart:
    """One part of a list, as written, and the first and last block that it names."""

    text: str
    first: int
    last: int
    list_name: str = ""  # of the list in which it counts; empty: through all lists of the model


@dataclass(frozen=True, slots=True)
class BlockList:
    """The parts of a list in the order written; `indices` is what they come to."""

    parts: tuple[BlockPart, ...]

    @property
    def by_list(self) -> bool:
        """Whether the parts say in which list of the model they count."""
        return any(part.list_name for part in self.parts)

    @property
    def named(self) -> frozenset[tuple[str, int]]:
        """The blocks named, each once: its list (empty where none is said) and its number there."""
        return frozenset(
            (part.list_name, index)
            for part in self.parts
            for index in range(part.first, part.last + 1)
        )

    @property
    def indices(self) -> tuple[int, ...]:
        """The blocks named, counted through all lists: ascending. Empty where lists are named."""
        return tuple(sorted(index for name, index in self.named if not name))

    @property
    def text(self) -> str:
        """The list written again: the user's parts, joined by commas."""
        return ",".join(part.text for part in self.parts)

    def check_against_model(self, count: int) -> None:
        """Raises SelectionError, quoting the part, if the model of `count` >= 1 blocks lacks it."""
        for part in self.parts:
            if part.last >= count:
                has = f"blocks 0-{count - 1}" if count > 1 else "only block 0"
                raise _invalid_range(part.text, f"the model has {has}")

    def check_against_lists(self, places: Mapping[str, Collection[int]]) -> None:
        """The same where lists are named. `places`: which numbers each list of the model has."""
        for part in self.parts:
            have = places.get(part.list_name)
            if have is None:
                lists = ", ".join(f"{name} ({_span(there)})" for name, there in places.items())
                raise _invalid_range(part.text, f"the model has the lists {lists}")
            for index in range(part.first, part.last + 1):
                if index not in have:
                    has = f"{part.list_name} has blocks {_span(have)}"
                    raise _invalid_range(part.text, has)


def _span(places: Collection[int]) -> str:
    ordered = sorted(places)
    runs = [i for i, place in enumerate(ordered) if i == 0 or ordered[i - 1] != place - 1]
    ends = [*runs[1:], len(ordered)]
    spans = [(ordered[low], ordered[high - 1]) for low, high in zip(runs, ends, strict=True)]
    return ", ".join(f"{low}-{high}" if high > low else str(low) for low, high in spans)


def parse_block_list(text: str) -> tuple[int, ...]:
    """The block indices that `text` names without a list's name: ascending, each once.

    Empty for an empty text, and where every part names its list (`read_text` has those).
    Raises SelectionError: "Invalid range: '3-1': ..." or "Invalid integer: 'a': ...".
    """
    return read_text(text).indices


def read_text(text: str) -> BlockList:
    """Reads a list as text. Errors as `parse_block_list`."""
    stripped = (part.strip() for part in re.split(r"[,\n]", text))
    parts = tuple(_read_named_part(part) for part in stripped if part)
    bare = next((part for part in parts if not part.list_name), None)
    if bare is not None and len(parts) > 1 and any(part.list_name for part in parts):
        named = next(part.list_name for part in parts if part.list_name)
        raise _invalid_range(
            bare.text, f"other parts name their list, so name it here, too, as in {named}:0-5"
        )
    return BlockList(parts)


def read_indices(values: Iterable[SupportsIndex]) -> BlockList:
    """Takes a list that already is numbers; a part is then one index. Raises SelectionError."""
    return BlockList(tuple(_read_index(value) for value in values))


def _read_named_part(part: str) -> BlockPart:
    name, colon, span = (piece.strip() for piece in part.rpartition(":"))
    if not colon:
        return _read_part(part)
    if not _NAME.fullmatch(name):
        raise _invalid_range(part, "write a list and its blocks such as transformer_blocks:0-5")
    read = _read_part(span)
    return BlockPart(f"{name}:{read.text}", read.first, read.last, name)


def _read_part(part: str) -> BlockPart:
    if "-" not in part:
        if not _DIGITS.fullmatch(part):
            raise _invalid_integer(part)
        index = _bounded(part, part)
        return BlockPart(part, index, index)
    ends = [end.strip() for end in part.split("-")]
    if len(ends) != 2 or not all(_DIGITS.fullmatch(end) for end in ends):
        raise _invalid_range(part, "a range is two block numbers such as 3-5")
    first, last = _bounded(ends[0], part), _bounded(ends[1], part)
    if first > last:
        raise _invalid_range(part, f"it runs backwards, write {last}-{first}")
    return BlockPart(part, first, last)


def _bounded(digits: str, part: str) -> int:
    significant = digits.lstrip("0") or "0"
    if len(significant) > len(str(MOST_INDEX)):  # before int(), which refuses very long texts
        raise _invalid_range(part, f"block numbers go up to {MOST_INDEX}")
    return int(significant)


def whole_number(value: object) -> int | None:
    """The integer that `value` is, also numpy's or a tensor's; None for truth values and others."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:  # a tensor of fractions has __index__ and refuses when asked
        return None


def _read_index(value: object) -> BlockPart:
    index = whole_number(value)
    if index is None:
        raise _invalid_integer(str(value))
    if not 0 <= index <= MOST_INDEX:
        raise _invalid_range(str(index), f"block numbers go from 0 to {MOST_INDEX}")
    return BlockPart(str(index), index, index)


def _invalid_range(part: str, reason: str) -> SelectionError:
    return SelectionError(f"Invalid range: '{_quoted(part)}': {reason}")


def _invalid_integer(part: str) -> SelectionError:
    reason = "a block is a whole number, a list of them looks like 0,2,3-5"
    return SelectionError(f"Invalid integer: '{_quoted(part)}': {reason}")


def _quoted(part: str) -> str:
    return part if len(part) <= _MOST_QUOTED else part[:_MOST_QUOTED] + "..."
