"""Activations, margin and speeds known before the first forward; seconds of each unit from FLOPs.

Both are optional: without them a plan leaves a reserve and keeps as many blocks as fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .machine import Machine
from .pieces import InPieces
from .unit_sizes import UnitFacts
from .workload import ForwardCost


@dataclass(frozen=True, slots=True)
class Speeds:
    """How long the units compute and how fast bytes come, for one workload on one machine.

    `compute_seconds` names every unit; `rest_seconds` is what a forward computes outside of them.
    Rates are in bytes a second: `link` from pinned memory to the device, `disk` as the checkpoint
    is read. A rate of None means that this way is never taken (on the CPU there is no link).
    `decode_seconds` are those of one decoding of a unit, by its name and where it rests.
    """

    compute_seconds: Mapping[str, float]
    rest_seconds: float = 0.0
    link: float | None = None
    disk: float | None = None
    decode_seconds: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Foresight:
    """What a workload needs beside weights and slots, in bytes, and the speeds if they are known.

    `workload` names it in sentences ("832x480, 81 frames"). `margin_bytes` stands for what no
    model of the device sees: its context, fragmentation, workspaces of its libraries.
    `in_pieces` says what is needed where blocks run in pieces of tokens, and `chunk_tokens` how
    many are in a piece of the forward that this speaks of; 0: it runs whole.
    """

    workload: str
    activation_bytes: int
    margin_bytes: int = 0
    speeds: Speeds | None = None
    in_pieces: InPieces | None = None
    chunk_tokens: int = 0

    @property
    def reserve_bytes(self) -> int:
        return self.activation_bytes + self.margin_bytes

    def cut(self, chunk_tokens: int) -> "Foresight":
        """The same forward in pieces of at most so many tokens; itself where that is not known."""
        if self.in_pieces is None:
            return self
        activations = self.in_pieces.activations(chunk_tokens)
        return replace(
            self,
            activation_bytes=activations,
            margin_bytes=self.in_pieces.margin(activations),
            chunk_tokens=chunk_tokens,
        )


def speeds_of(
    cost: ForwardCost, machine: Machine | None, dtype: str, units: Sequence[UnitFacts] = ()
) -> Speeds | None:
    """Seconds of every unit on `machine`; None where its rate for `dtype` is not known.

    `units` say what is decoded. Where the rate of the device's memory is not known, decoding
    counts as nothing.
    """
    if machine is None or machine.compute_seconds(0.0, dtype) is None:
        return None
    attention = dict(cost.attention_flops)
    seconds = {
        name: machine.compute_seconds(
            flops - attention.get(name, 0), dtype, attention_flops=attention.get(name, 0)
        )
        for name, flops in cost.unit_flops
    }
    return Speeds(
        compute_seconds={name: found or 0.0 for name, found in seconds.items()},
        rest_seconds=machine.compute_seconds(cost.rest_flops, dtype) or 0.0,
        link=machine.pinned_link,
        disk=None if machine.disk is None else machine.disk.bytes_per_second,
        decode_seconds=_decode_seconds(units, machine.memory_rate),
    )


def _decode_seconds(
    units: Sequence[UnitFacts], memory_rate: float | None
) -> dict[tuple[str, str], float]:
    """A decoding is bound by memory: its bytes at the device's own rate."""
    if not memory_rate:
        return {}
    return {
        (unit.name, tier): unit.decode_moved_bytes / memory_rate
        for unit in units
        for tier, needed in (("disk", unit.decode_bytes), ("ram", unit.ram_decode_bytes))
        if needed
    }
