"""Sizes, times and rates between the words people write and the integers the engine counts in.

Reading is tolerant of how people write sizes of video memory and strict about what they mean:

    "8GiB", "8 gib", "8Gi", "8g"    8 x 2^30     a bare letter is binary, as a card's 24G are
    "8GB", "8 gb"                   8 x 10^9     the decimal unit, when both letters are written
    "512", "512B", 512, 512.0       512 bytes    no unit: bytes
"""

import math
import operator
import re
from fractions import Fraction
from typing import SupportsIndex

from .errors import ArgsError

KIB, MIB, GIB = 2**10, 2**20, 2**30

_BINARY = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": 2**40}
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
# Digits are counted, so that no text can ask for a number of a million digits.
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})\s*([kmgt]?)(ib|i|b)?", re.I)
_MOST_BYTES = 2**63 - 1


def parse_bytes(value: str | float | SupportsIndex, *, name: str = "size") -> int:
    """Bytes meant by a text or a number; fractions of a byte are rounded down.

    `name` is what the value is called in an error. Raises ArgsError for anything that is not a
    size: other text, a negative number, NaN, infinity, a truth value, more than 2^63 - 1.
    """
    nbytes = _read(value, name)
    if nbytes < 0:
        raise ArgsError(f"{name}={value!r} is negative: {_WRITE}")
    if nbytes > _MOST_BYTES:
        raise ArgsError(f"{name}={_short(value)} is more than any memory holds: {_WRITE}")
    return nbytes


_WRITE = "write a number of bytes, or a text such as 8GiB, 512MiB or 8GB"


def _read(value: object, name: str) -> int:
    if isinstance(value, str):
        return _read_text(value, name)
    if isinstance(value, float) and math.isfinite(value):
        return math.floor(value)
    if not isinstance(value, bool | float) and isinstance(value, SupportsIndex):
        return operator.index(value)
    raise ArgsError(f"{name}={_short(value)} is no size: {_WRITE}")


def _read_text(text: str, name: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ArgsError(f"{name}={_short(text)} is no size: {_WRITE}")
    number, prefix, ending = match[1], match[2].lower(), (match[3] or "").lower()
    if ending.startswith("i") and not prefix:
        raise ArgsError(f"{name}={_short(text)} is no size: {_WRITE}")
    decimal = ending == "b" and prefix
    factor = _DECIMAL[prefix] if decimal else _BINARY[prefix]
    return math.floor(Fraction(number.rstrip(".")) * factor)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def format_bytes(nbytes: int) -> str:
    """The size in binary units with one decimal: 8.1 GiB, 670.2 MiB, 512 B."""
    size = float(nbytes)
    if abs(size) < KIB:
        return f"{nbytes} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if abs(size) < 1023.95:  # what would be printed as 1024.0 belongs to the next unit
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def format_bytes_at_least(nbytes: int) -> str:
    """The size as `format_bytes` writes it, rounded up: read back, it is never below `nbytes`."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if nbytes >= factor:
            tenths = -(-nbytes * 10 // factor)
            return f"{tenths // 10}.{tenths % 10} {unit}"
    return f"{nbytes} B"


def format_seconds(seconds: float) -> str:
    """A duration as people read it: 120 µs, 28.0 ms, 1.53 s, 2 min 05 s, 1 h 02 min."""
    size = abs(seconds)
    if size < 0.9995e-3:
        return f"{seconds * 1e6:.0f} µs"
    if size < 0.99995:
        return f"{seconds * 1e3:.1f} ms"
    if size < 59.995:
        return f"{seconds:.2f} s"
    sign, whole = "-" if seconds < 0 else "", round(size)
    if whole < 3600:
        return f"{sign}{whole // 60} min {whole % 60:02d} s"
    minutes = round(size / 60)
    return f"{sign}{minutes // 60} h {minutes % 60:02d} min"


def format_rate(bytes_per_second: float) -> str:
    """A bandwidth in decimal units, as links and disks are sold: 25.0 GB/s, 980 MB/s."""
    if bytes_per_second >= 0.9995e9:
        return f"{bytes_per_second / 1e9:.1f} GB/s"
    if bytes_per_second >= 0.9995e6:
        return f"{bytes_per_second / 1e6:.0f} MB/s"
    return f"{bytes_per_second / 1e3:.1f} kB/s"


def format_flops(flops_per_second: float) -> str:
    """A rate of floating-point operations: 99.1 TFLOP/s, 148 GFLOP/s."""
    if flops_per_second >= 0.9995e12:
        return f"{flops_per_second / 1e12:.1f} TFLOP/s"
    return f"{flops_per_second / 1e9:.3g} GFLOP/s"
