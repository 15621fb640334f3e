"""Quoting: this module owns how untrusted names appear in messages, shortened and escaped."""

import reprlib
from collections.abc import Collection

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120
_REPR.maxlist = _REPR.maxtuple = 8
_SHOWN = 4


def quote(value: object) -> str:
    """`repr(value)`, cut in the middle where a hostile file would fill the screen with it."""
    return _REPR.repr(value)


def some(names: Collection[str]) -> str:
    """The first few names, quoted, and how many more there are."""
    shown = ", ".join(quote(name) for name in list(names)[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
