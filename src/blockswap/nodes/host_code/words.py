"""Which names the code of a function, a class or a module works with, read without running it.

Attributes that somebody else's code hangs on its objects at run time are nowhere to be looked up;
that code names them.
"""

import functools
import inspect
from types import CodeType, FunctionType, ModuleType
from typing import Any


def words_of(owner: Any) -> frozenset[str]:
    """Names, texts and arguments of all code in a function, a class or a module."""
    found: set[str] = set()
    open_codes = list(_codes(owner))
    while open_codes:
        code = open_codes.pop()
        found.update(code.co_names, code.co_varnames, code.co_freevars)
        found.update(text for text in code.co_consts if isinstance(text, str))
        for part in code.co_consts:
            if isinstance(part, tuple):  # names of keyword arguments, in older Pythons
                found.update(text for text in part if isinstance(text, str))
            elif inspect.iscode(part):
                open_codes.append(part)
    return frozenset(found)


def _codes(owner: Any) -> list[CodeType]:
    if isinstance(owner, (type, ModuleType)):
        home = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
        own = [value for value in vars(owner).values() if getattr(value, "__module__", "") == home]
        return [code for value in own if value is not owner for code in _codes(value)]
    code = getattr(inspect.unwrap(owner) if callable(owner) else None, "__code__", None)
    return [] if code is None else [code]


@functools.lru_cache(maxsize=256)
def works_with(function: Any) -> frozenset[str]:
    """What a plain function reaches for: attributes, functions, keywords and texts.

    Not how it calls its own variables, nor what it says of itself. What stands in front of another
    function counts as itself, and what is no plain function works with nothing that is known.
    """
    if not isinstance(function, FunctionType):
        return frozenset()
    found: set[str] = set()
    open_codes = [function.__code__]
    while open_codes:
        code = open_codes.pop()
        found.update(code.co_names)
        for part in code.co_consts:
            if inspect.iscode(part):
                open_codes.append(part)
            texts = part if isinstance(part, tuple) else (part,)
            found.update(text for text in texts if isinstance(text, str))
    # Sentences say something to people; older Pythons keep the names of inner functions as texts.
    return frozenset(word for word in found if " " not in word and "<locals>" not in word)
