"""How much time and memory the probe may take, which sizes it tries, its results as values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..plan.inputs.machine import DiskFigures, Machine, disk_from, machine_from, text_from
from ..store.disk import PIECE_BYTES
from ..store.readers import READERS
from ..units import KIB, MIB

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much time and memory the probe may take; the defaults make it about ten seconds.

    A single call or read that is slower than its whole share is still finished: it is what
    tells the rate. `width` and `tokens` are those of the matrix products, [tokens, width] x
    [width, width]; tokens grow to the last rung that fits the time. `copy_bytes` is the size of
    one copy, of which host and device hold one each (four for the device's own memory);
    `scratch_bytes` the file that is written where no model file is given; `readers` and
    `chunks` (bytes) are the settings tried, the product's own first.
    """

    compute_seconds: float = 4.0
    link_seconds: float = 1.5
    disk_seconds: float = 4.0
    width: int = 5120
    tokens: tuple[int, ...] = (16, 64, 256, 1024, 4096)
    dtypes: tuple[str, ...] = DTYPES
    copy_bytes: int = 64 * MIB
    scratch_bytes: int = 256 * MIB
    readers: tuple[int, ...] = (READERS, 1, 2, 8)
    chunks: tuple[int, ...] = (PIECE_BYTES, 512 * KIB, 2 * MIB, 32 * MIB)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured rate, the median of some rounds, and how it was measured.

    `per_second` is in `unit`s ("FLOP" or "byte"); `spread` is the slowest round over the fastest.
    """

    name: str
    per_second: float
    unit: str
    how: str
    spread: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One way to read the disk, and the median rate it reached."""

    mode: str
    readers: int
    chunk_bytes: int
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class DevicePart:
    """What was found of device and link; `machine` has no disk."""

    machine: Machine
    figures: tuple[Figure, ...]
    sentences: tuple[str, ...]
    measured_at: str  # UTC, ISO 8601

    def to_dict(self) -> dict[str, Any]:
        return {
            "machine": self.machine.to_dict(),
            "figures": [asdict(figure) for figure in self.figures],
            "sentences": list(self.sentences),
            "measured_at": self.measured_at,
        }


@dataclass(frozen=True, slots=True)
class DiskPart:
    """What was found of the disk of a folder; `figures` None where it could not be measured."""

    folder: str
    figures: DiskFigures | None
    trials: tuple[Trial, ...]
    sentences: tuple[str, ...]
    measured_at: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def device_part_from(value: Mapping[str, Any]) -> DevicePart:
    """What `DevicePart.to_dict` wrote. Raises KeyError, TypeError or ValueError where it is not."""
    return DevicePart(
        machine=machine_from(value["machine"]),
        figures=tuple(_figure(figure) for figure in value["figures"]),
        sentences=_texts(value["sentences"]),
        measured_at=text_from(value["measured_at"]),
    )


def disk_part_from(value: Mapping[str, Any]) -> DiskPart:
    """What `DiskPart.to_dict` wrote. Raises KeyError, TypeError or ValueError where it is not."""
    figures = value["figures"]
    return DiskPart(
        folder=text_from(value["folder"]),
        figures=None if figures is None else disk_from(figures),
        trials=tuple(_trial(trial) for trial in value["trials"]),
        sentences=_texts(value["sentences"]),
        measured_at=text_from(value["measured_at"]),
    )


def _figure(value: Mapping[str, Any]) -> Figure:
    name, unit, how = (text_from(value[key]) for key in ("name", "unit", "how"))
    return Figure(name, _rate(value["per_second"]), unit, how, _rate(value["spread"]))


def _trial(value: Mapping[str, Any]) -> Trial:
    readers, chunk_bytes = _count(value["readers"]), _count(value["chunk_bytes"])
    return Trial(text_from(value["mode"]), readers, chunk_bytes, _rate(value["bytes_per_second"]))


def _rate(value: Any) -> float:
    if type(value) not in (int, float) or value < 0:
        raise ValueError(f"{value!r:.40} is no rate")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list of texts")
    return tuple(map(text_from, value))
