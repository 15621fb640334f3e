"""Strict JSON: this module owns turning untrusted bytes into a JSON object, or saying why not.

Stricter than `json.loads` where that would guess: duplicate keys, NaN, endless numbers, lone
surrogates and nesting bombs are refused. Numbers become `int` exactly where the safetensors
reference reader (Rust's serde) reads an unsigned or signed 64-bit integer, and `float` elsewhere.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from .quoting import quote

_DIGITS_OF_64_BITS = 20


class JsonRefused(ValueError):
    """Why the bytes are no acceptable JSON object: a clause that fits after "the header "."""


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data` (UTF-8). Raises JsonRefused."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
        )
    except UnicodeDecodeError as error:
        raise JsonRefused(f"is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise JsonRefused("is nested too deeply") from error
    except JsonRefused:
        raise
    except ValueError as error:
        raise JsonRefused(f"is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise JsonRefused(f"is a JSON {_kind(value)} instead of an object")
    return value


def _kind(value: object) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(
        type(value), "number"
    )


def _object(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise JsonRefused(f"says {quote(key)} twice")
        _printable(key)
        if isinstance(value, str):
            _printable(value)
        result[key] = value
    return result


def _printable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise JsonRefused(f"holds half a surrogate pair in {quote(text)}") from error


def _integer(text: str) -> int | float:
    # "-0" and what 64 bits cannot hold are floats to serde; Python's own int() of endless
    # digits would also take quadratic time.
    if text == "-0" or len(text.lstrip("-")) > _DIGITS_OF_64_BITS:
        return _number(text)
    value = int(text)
    return value if -(2**63) <= value < 2**64 else float(value)


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise JsonRefused(f"holds a number too large for a double ({text[:20]}...)")
    return value


def _constant(text: str) -> NoReturn:
    raise JsonRefused(f"holds {text}, which is not JSON")
