"""How many blocks become resident or leave after a measured forward or an OOM, and the headroom.

A forward's peak is weights, slots and activations together. What it leaves of the limit, beyond
the headroom, takes further residents; a forward that used up half of the headroom takes some away
until it is whole again (so the plan does not swing between two sizes). After an out-of-memory as
many leave as the error says is missing. Numbers in, names out: the engine carries it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...selection import spread
from ...units import MIB

# Left free for what is not measured (other programs, fragmentation, workspaces of libraries) where
# the plan has no margin of its own.
LEAST_HEADROOM_BYTES = 256 * MIB
HEADROOM_SHARE = 20  # a twentieth of what the limit allows


@dataclass(frozen=True, slots=True)
class Movable:
    """A unit that may change residency, in execution order.

    `bytes` is what its slab takes on the device, rounded as the allocator does. `demotable`: a
    slot is large enough for it.
    """

    name: str
    bytes: int
    resident: bool
    demotable: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be used on the device, in bytes; None where nothing limits.

    `total_bytes` is for weights, slots and activations, `weights_bytes` for weights and slots.
    `margin_bytes` is the margin that the plan was made with, where it knew the activations.
    """

    total_bytes: int | None
    weights_bytes: int | None = None
    margin_bytes: int | None = None

    @property
    def headroom_bytes(self) -> int:
        """What is left free of the total limit."""
        if self.margin_bytes is not None:
            return self.margin_bytes
        return max(LEAST_HEADROOM_BYTES, (self.total_bytes or 0) // HEADROOM_SHARE)


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes on the device: weights and slots as planned, and the peak of forwards with them."""

    weights_bytes: int
    peak_bytes: int
    entry_bytes: int = 0  # slots that the first unit to leave would need, where there are none yet


@dataclass(frozen=True, slots=True)
class Correction:
    """The units to promote or to demote (never both), and the room that was found, in bytes.

    `room_bytes` is what was left of the limit; negative where the peak was above it.
    """

    promote: tuple[str, ...] = ()
    demote: tuple[str, ...] = ()
    room_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.promote or self.demote)


def correct(units: Sequence[Movable], use: Use, limits: Limits) -> Correction:
    """What a forward that used `use` says of the plan, evenly spread over the units.

    Promotes the most units whose bytes fit what is left beyond the headroom (and the limit for
    weights); demotes the fewest that bring the headroom back once half of it is used.
    """
    if limits.total_bytes is None:
        return Correction()
    left = limits.total_bytes - use.peak_bytes
    room = left - limits.headroom_bytes
    if left < limits.headroom_bytes // 2:
        return Correction(demote=leaving(units, -room, use.entry_bytes), room_bytes=left)
    if limits.weights_bytes is not None:
        room = min(room, limits.weights_bytes - use.weights_bytes)
    return Correction(promote=_joining(units, room), room_bytes=left)


def leaving(units: Sequence[Movable], wanted_bytes: int, entry_bytes: int = 0) -> tuple[str, ...]:
    """The fewest residents that free `wanted_bytes` beyond `entry_bytes`, evenly spread.

    All that can leave if they do not suffice; none if they would not even free `entry_bytes`.
    """
    residents = [unit for unit in units if unit.resident and unit.demotable]
    chosen: list[Movable] = []
    for count in range(1, len(residents) + 1):
        chosen = _even(residents, count)
        if sum(unit.bytes for unit in chosen) >= wanted_bytes + entry_bytes:
            break
    if sum(unit.bytes for unit in chosen) <= entry_bytes:
        return ()
    return tuple(unit.name for unit in chosen)


def half_leaving(units: Sequence[Movable], entry_bytes: int = 0) -> tuple[str, ...]:
    """Half of the residents that can leave, at least one: for an error that names no bytes."""
    held = sum(unit.bytes for unit in units if unit.resident and unit.demotable)
    return leaving(units, -(-held // 2) - entry_bytes, entry_bytes)


def _joining(units: Sequence[Movable], room: int) -> tuple[str, ...]:
    """The most that fit, evenly spread over all, or over the smaller ones only.

    One large unit must not keep many small ones out: more room would mean fewer residents.
    """
    streamed = [unit for unit in units if not unit.resident and unit.bytes <= room]
    best: list[Movable] = []
    for largest in sorted({unit.bytes for unit in streamed}, reverse=True):
        chosen = _most([unit for unit in streamed if unit.bytes <= largest], room)
        if len(chosen) > len(best):
            best = chosen
    return tuple(unit.name for unit in best)


def _most(units: Sequence[Movable], room: int) -> list[Movable]:
    for count in range(len(units), 0, -1):
        chosen = _even(units, count)
        if sum(unit.bytes for unit in chosen) <= room:
            return chosen
    return []


def _even(units: Sequence[Movable], count: int) -> list[Movable]:
    return [units[position] for position in spread(len(units), count)]
