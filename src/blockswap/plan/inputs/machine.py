"""A machine's rates as a value: seconds from FLOPs and bytes, and the JSON it is kept in.

    seconds of a block = its FLOPs / rate of the dtype     (attention has a rate of its own)
    seconds of a copy  = bytes / link
    seconds of a read  = bytes / disk

It comes from a measurement (`blockswap probe`) or from the table of cards (`plan.cards`).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import ArgsError
from .margin import MARGIN, NO_MARGIN, Margin

Rates = tuple[tuple[str, float], ...]  # dtype name and figure; a tuple, so that it hashes


@dataclass(frozen=True, slots=True)
class DiskFigures:
    """How a folder's disk reads best, by the way the product reads, and how fast that is."""

    bytes_per_second: float
    readers: int
    chunk_bytes: int
    direct: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates and sizes of one machine. Rates per second; sizes in bytes; None where unknown.

    `flops` and `attention_flops` are sustained FLOP/s of large matrix products and of attention
    by dtype name ("bfloat16"). Links are host to device. On the host (`on_host`) there is none:
    blocks are used where they lie. `source` says where the figures come from, in a sentence.
    """

    name: str
    on_host: bool
    flops: Rates
    attention_flops: Rates = ()
    device_bytes: int | None = None
    host_bytes: int | None = None
    memory_rate: float | None = None  # bytes/s read and written in the device's own memory
    pinned_link: float | None = None
    pageable_link: float | None = None
    disk: DiskFigures | None = None
    source: str = ""
    margin: Margin | None = None

    @property
    def kept_free(self) -> Margin:
        """What a prediction leaves free here: `margin`, by default that of its kind of device."""
        if self.margin is not None:
            return self.margin
        return NO_MARGIN if self.on_host else MARGIN

    def compute_seconds(
        self, matmul_flops: float, dtype: str, *, attention_flops: float = 0.0
    ) -> float | None:
        """Time of that many FLOPs of matrix products and of attention in `dtype`.

        Attention goes by the rate of matrix products where its own is not known; None where
        the dtype is unknown.
        """
        rate = dict(self.flops).get(dtype)
        if rate is None:
            return None
        return matmul_flops / rate + attention_flops / dict(self.attention_flops).get(dtype, rate)

    def copy_seconds(self, nbytes: int, *, pinned: bool = True) -> float | None:
        """Time of a copy to the device; 0 on the host, None where the link is unknown."""
        if self.on_host:
            return 0.0
        link = self.pinned_link if pinned else self.pageable_link
        return None if link is None else nbytes / link

    def read_seconds(self, nbytes: int) -> float | None:
        """Time to read that many bytes from the disk; None where it is unknown."""
        return None if self.disk is None else nbytes / self.disk.bytes_per_second

    def to_dict(self) -> dict[str, Any]:
        """Dictionaries, numbers and texts, ready for `json.dumps`; `machine_from` reads it."""
        told = asdict(self)
        del told["margin"]
        told["flops"] = dict(self.flops)
        told["attention_flops"] = dict(self.attention_flops)
        return told


def machine_from(value: Mapping[str, Any]) -> Machine:
    """The machine that `Machine.to_dict` wrote. Raises ArgsError where it is not one."""
    try:
        disk = value["disk"]
        return Machine(
            name=text_from(value["name"]),
            on_host=_flag(value["on_host"]),
            flops=_rates(value["flops"]),
            attention_flops=_rates(value["attention_flops"]),
            device_bytes=_size(value["device_bytes"]),
            host_bytes=_size(value["host_bytes"]),
            memory_rate=_rate(value["memory_rate"]),
            pinned_link=_rate(value["pinned_link"]),
            pageable_link=_rate(value["pageable_link"]),
            disk=None if disk is None else disk_from(disk),
            source=text_from(value["source"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArgsError(
            f"this is no machine as a probe writes it ({error!r}): probe anew"
        ) from error


def disk_from(value: Mapping[str, Any]) -> DiskFigures:
    """The figures that `asdict` made of `DiskFigures`.

    Raises KeyError, TypeError or ValueError where they are not.
    """
    rate = _rate(value["bytes_per_second"])
    readers, chunk = _size(value["readers"]), _size(value["chunk_bytes"])
    if rate is None or not readers or not chunk:
        raise ValueError("figures of a disk are numbers above zero")
    return DiskFigures(rate, readers, chunk, _flag(value["direct"]))


def _rates(value: Mapping[str, Any]) -> Rates:
    rates = ((text_from(dtype), _rate(figure)) for dtype, figure in value.items())
    return tuple((dtype, figure) for dtype, figure in rates if figure is not None)


def _rate(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{value!r} is no rate")
    return float(value)


def _size(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def text_from(value: Any) -> str:
    """A text as kept. Raises TypeError where it is none."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
