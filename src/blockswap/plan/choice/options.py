"""Which residents are offered and their bytes; without speeds slots are fitted before residents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ...layout.slab import align_up
from ..inputs.slot_size import serving_bytes
from ..inputs.unit_sizes import EXCHANGED_SLABS, Facts, UnitFacts
from .resident_sets import Costs, kept_sets
from .tiers import HostRoom


@dataclass(frozen=True, slots=True)
class Option:
    """One choice of streamed units and its price; sizes in bytes, rounded as the device does.

    On the CPU that is the price for all ranks of the host, who share what stays and have
    each slots and a decode buffer.
    """

    streamed: tuple[UnitFacts, ...]  # in execution order
    residents: int
    fixed_bytes: int  # rest, residents and decode buffer
    slot_bytes: int

    def device_bytes(self, slots: int) -> int:
        """Peak bytes of weights and slots; never more slots than streamed units are made."""
        return self.fixed_bytes + min(slots, len(self.streamed)) * self.slot_bytes


@dataclass(frozen=True, slots=True)
class Fit:
    """An option and the number of slots that it was found to fit with."""

    option: Option
    slots: int


def option_for(facts: Facts, room: HostRoom, streamed: Sequence[UnitFacts]) -> Option:
    """Prices the choice of streaming exactly `streamed`."""
    names = {unit.name for unit in streamed}
    residents = [unit for unit in facts.units if unit.name not in names]
    buffers = room.buffers(streamed)
    sizes = [facts.rest_bytes, *(unit.resident_bytes for unit in residents)]
    ranks = facts.ranks_in_memory
    sizes += [max((decode for _, decode in buffers), default=0)] * ranks
    slot = serving_bytes(facts, max((slot for slot, _ in buffers), default=0))
    if ranks > 1:
        sizes += [slot] * EXCHANGED_SLABS
    return Option(
        streamed=tuple(streamed),
        residents=len(residents),
        fixed_bytes=sum(align_up(size, facts.granularity) for size in sizes),
        slot_bytes=ranks * align_up(slot, facts.granularity),
    )


def options(facts: Facts, room: HostRoom, candidates: Sequence[UnitFacts]) -> Iterator[Option]:
    """All options worth trying, from all resident to all streamed.

    Neither the budget nor the slots decide what is offered: so more budget can only allow more.
    """
    rounded = partial(align_up, alignment=facts.granularity)
    costs = [
        Costs(keep=rounded(unit.resident_bytes), slot=rounded(slot), decode=rounded(decode))
        for unit, (slot, decode) in zip(candidates, room.buffers(candidates), strict=True)
    ]
    for keep in range(len(candidates), -1, -1):
        for kept in kept_sets(costs, keep):
            let_go = [unit for at, unit in enumerate(candidates) if at not in kept]
            yield option_for(facts, room, let_go)


def floor_of(offered: Sequence[Option]) -> Option:
    """The option that needs least memory with a single slot; of equals, the most residents."""
    return min(offered, key=lambda option: option.device_bytes(1))


def best_fit(offered: Sequence[Option], limit_bytes: int, slots: int) -> Fit | None:
    """The option with most residents that fits `limit_bytes`, or None.

    Slots come first and residents after them: while `slots` do not fit, the least option is run
    with as many as do. So more memory never means fewer residents.
    """
    floor = floor_of(offered)
    for option in offered:
        if option.residents >= floor.residents and option.device_bytes(slots) <= limit_bytes:
            return Fit(option, slots)
    for fewer in range(slots - 1, 0, -1):
        if floor.device_bytes(fewer) <= limit_bytes:
            return Fit(floor, fewer)
    return None
