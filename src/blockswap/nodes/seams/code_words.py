"""Which names the code of a function, a class or a module works with, read without running it.

Attributes that somebody else's code hangs on its objects at run time are nowhere to be looked up;
that code names them.
"""

import inspect
from types import CodeType, ModuleType
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
