"""What a running swap may change: which blocks, within which limits, through how many new slots."""

from dataclasses import dataclass
from typing import Protocol

from ...adapters.live import LiveUnit
from ...plan import Facts, Speeds, Tier
from ...plan.correction.promotion import Limits
from ...stream.units.unit import StreamedUnit
from ..plan_inputs.basis import Basis

# Slots for units that leave where all were resident at first, as many as a plan would make.
LATER_SLOTS = 3
# Of what is free, a tenth is left alone, as by the first plan.
TENTHS_USED = 9


class Forms(Protocol):
    """How units that were resident from the start come to be streamed."""

    def tier(self, name: str) -> Tier:
        """Where the unit would rest."""
        ...

    def fits(self, name: str) -> bool:
        """Whether the pool's slots, decode and staging buffers are large enough for it."""
        ...

    def make(self, unit: LiveUnit) -> StreamedUnit:
        """Brings the unit's bytes to where it will rest; may be repeated after an interrupt."""
        ...

    def close(self) -> None:
        """Takes back what `make` did."""
        ...


@dataclass(frozen=True, slots=True)
class Freedom:
    """What a running swap may change: the candidates of a selection that is not exact.

    `slots` are those to make where the plan began with none, because everything was resident.
    """

    facts: Facts
    movable: frozenset[str]
    limits: Limits
    slots: int
    forms: Forms
    speeds: Speeds | None = None


def freedom_of(basis: Basis, forms: Forms) -> Freedom | None:
    """What may change while the swap runs: None for exact blocks, or where nothing may."""
    facts, args = basis.facts, basis.args
    if basis.selection.exact or facts.on_host or not basis.selection.candidates:
        return None
    return Freedom(
        facts=facts,
        movable=frozenset(basis.selection.candidates),
        limits=_limits(basis),
        slots=LATER_SLOTS if args.copies_ahead is None else args.copies_ahead + 1,
        forms=forms,
        speeds=None if basis.foresight is None else basis.foresight.speeds,
    )


def _limits(basis: Basis) -> Limits:
    """The limits that the plan was made for; a budget covers activations if they were foreseen."""
    free, budget = basis.facts.device_free_bytes, basis.args.vram_budget_bytes
    margin = None if basis.foresight is None else basis.foresight.margin_bytes
    if budget is None:
        total = None if free is None else free * TENTHS_USED // 10
        return Limits(total, margin_bytes=margin)
    if basis.foresight is None:
        return Limits(None, weights_bytes=budget)
    return Limits(budget, margin_bytes=margin)
