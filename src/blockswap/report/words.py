"""How figures are spelled in a report: bytes, seconds, rates, shares, runs of block names."""

from collections.abc import Iterable

from ..units import format_bytes, format_rate, format_seconds

NOT_MEASURED = "not measured"


def say_bytes(nbytes: int | None) -> str:
    """`"1.5 GiB"`, or `"not measured"`."""
    return NOT_MEASURED if nbytes is None else format_bytes(nbytes)


def say_seconds(seconds: float | None) -> str:
    """`"12.3 ms"`, `"4.56 s"`, or `"not measured"`."""
    return NOT_MEASURED if seconds is None else format_seconds(seconds)


def say_rate(bytes_per_second: float | None) -> str:
    """`"24.9 GB/s"` (decimal, as links and disks are sold), or `"not measured"`."""
    return NOT_MEASURED if bytes_per_second is None else format_rate(bytes_per_second)


def say_share(share: float | None) -> str:
    """A share of 0 to 1 as `"0.3 %"`; what would round to nothing is `"under 0.1 %"`."""
    if share is None:
        return NOT_MEASURED
    if 0.0 < share < 0.0005:
        return "under 0.1 %"
    return f"{share * 100:.1f} %"


def count_of(number: int, singular: str, plural: str | None = None) -> str:
    """`"1 block"`, `"2 blocks"`, `"3 copies"`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def is_block(name: str) -> bool:
    """Whether a unit is one of a list of blocks, as `blocks.3` is and an embedder is not."""
    prefix, _, index = name.rpartition(".")
    return bool(prefix) and index.isdecimal()


def name_runs(names: Iterable[str]) -> str:
    """`("blocks.0", "blocks.1", "blocks.4", "img_emb")` as `"blocks 0-1, 4; img_emb"`."""
    groups: dict[str, list[int]] = {}
    for name in names:
        prefix, _, index = name.rpartition(".")
        if is_block(name):
            groups.setdefault(prefix, []).append(int(index))
        else:
            groups.setdefault(name, [])
    return "; ".join(f"{prefix} {_runs(found)}".rstrip() for prefix, found in groups.items())


def _runs(indices: list[int]) -> str:
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)
