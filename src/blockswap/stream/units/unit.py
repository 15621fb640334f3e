"""What the engine knows of a unit: how it is streamed or where it stays, and a change of that."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .binding import Binding, Hanging
from .decode import Decode
from .resident import Resident
from .transfer import Transfer


@dataclass(frozen=True, slots=True)
class StreamedUnit:
    """What the engine needs to run a streamed unit.

    `values[s]` is what hangs in the model when the unit is in slot s: views of the slot, or of the
    decode buffer where there is a `decode`.
    """

    binding: Binding
    transfer: Transfer
    values: tuple[Hanging, ...]
    decode: Decode | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit in execution order; `streamed` is None for one that stays where it is.

    `resident` is the slab of one that stays and may be told to leave.
    """

    name: str
    tier: str
    module: torch.nn.Module
    streamed: StreamedUnit | None
    resident: Resident | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A unit's change of residency: `hang` (may be repeated), then `unit` takes its place."""

    index: int
    unit: Unit
    hang: Callable[[], None]
