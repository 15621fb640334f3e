"""Figures of a report, planned beside measured, as values; which forwards count as whole.

Every field that can stay unmeasured is None then, never 0.
"""

from dataclasses import dataclass

from ..events import Measured, Visit
from ..layout.shares import Shares
from ..plan.swap_plan import SwapPlan, Tier
from ..plan.timing.shared_link import ALIGNMENT
from .spans import (
    Span,
    busy_seconds,
    copy_span,
    has_unmeasured_transfer,
    hidden_seconds,
    is_late,
    read_span,
)


@dataclass(frozen=True, slots=True)
class Group:
    """The units that rest in one place; `nbytes` is the size of their slabs."""

    names: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the plan put everything. Sizes in bytes.

    `kept_off_bytes` is what the device does not hold because blocks are streamed: their slabs
    less the slots. On the CPU only blocks on disk count, for RAM is the device. `chunk_tokens`: the
    most tokens in a piece of a block's forward; None: blocks run whole.
    """

    device: str
    block_map: str
    resident: Group
    ram: Group
    disk: Group
    slots: int
    slot_bytes: int
    prefetch: int
    kept_off_bytes: int
    map_words: str
    chunk_tokens: int | None

    @property
    def on_host(self) -> bool:
        """The blocks compute in RAM: those that rest there are used where they lie."""
        return self.device.startswith("cpu")

    @property
    def streamed(self) -> tuple[str, ...]:
        """What moves before it computes."""
        return self.disk.names if self.on_host else self.ram.names + self.disk.names

    @property
    def units(self) -> tuple[str, ...]:
        return self.resident.names + self.ram.names + self.disk.names


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes moved. Totals are the host's exact counts and so include what was already fetched
    for a forward to come; the figures per forward are means over `whole_forwards`, those with
    exactly one timed visit of every unit."""

    copies: int
    copied_bytes: int
    copied_bytes_per_forward: int | None
    planned_copied_bytes_per_forward: int
    copy_bytes_per_second: float | None
    reads: int
    read_bytes: int
    read_bytes_per_forward: int | None
    planned_read_bytes_per_forward: int
    read_bytes_per_second: float | None
    realigned_bytes: int
    whole_forwards: int
    gathers: int = 0  # of parts that other ranks brought
    gathered_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds over the timed visits; see `blockswap.report.spans` for hidden and exposed."""

    forwards: int
    visits: int
    timed_visits: int
    untimed_visits: int
    compute_seconds: float | None
    exposed_seconds: float | None
    hidden_seconds: float | None
    unmeasured_transfers: int
    on_demand: int
    late: tuple[tuple[int, str], ...]  # (forward, unit) whose transfer began once it was entered
    host_waits: int
    forward_seconds: float | None = None  # of whole forwards: in their blocks, waiting included
    planned_forward_seconds: float | None = None

    @property
    def waiting_share(self) -> float | None:
        """Exposed seconds as a share of the time in blocks (exposed + compute), 0 to 1."""
        if self.exposed_seconds is None or self.compute_seconds is None:
            return None
        total = self.exposed_seconds + self.compute_seconds
        return self.exposed_seconds / total if total > 0.0 else None


@dataclass(frozen=True, slots=True)
class Peaks:
    """Most bytes held at once; the planned device figure is weights and slots, not activations."""

    device_bytes: int | None
    planned_device_bytes: int
    reserve_bytes: int
    host_bytes: int | None
    pinned_bytes: int
    staging_bytes: int
    planned_peak_bytes: int | None = None  # with activations, where the workload was known


def placement_of(plan: SwapPlan) -> Placement:
    """What the plan decided, grouped by tier."""
    groups = {tier: _group(plan, tier) for tier in _TIERS}
    resident, ram, disk = (groups[tier] for tier in _TIERS)
    off = disk.nbytes + (0 if plan.device.startswith("cpu") else ram.nbytes)
    return Placement(
        device=plan.device,
        block_map=plan.block_map(),
        resident=resident,
        ram=ram,
        disk=disk,
        slots=plan.slots,
        slot_bytes=plan.slot_bytes,
        prefetch=plan.prefetch,
        kept_off_bytes=max(0, off - plan.slots * plan.slot_bytes),
        map_words=plan.map_words(),
        chunk_tokens=plan.chunk_tokens or None,
    )


def traffic_of(plan: SwapPlan, measured: Measured) -> Traffic:
    """Bytes moved and the rates achieved, beside the plan's bytes per forward."""
    counters, visits = measured.counters, measured.visits
    slab_bytes = {unit.name: unit.slab_bytes for unit in plan.units}
    copies = [(v.copied_bytes, span) for v in visits if (span := copy_span(v)) is not None]

    def read_of(visit: Visit) -> int:
        """All of the slab, or this rank's part of it."""
        nbytes = slab_bytes.get(visit.unit, 0)
        return nbytes if visit.parts == 1 else Shares(nbytes, visit.parts, ALIGNMENT).own_bytes

    reads = [(read_of(v), span) for v in visits if (span := read_span(v))]
    whole = _whole_forwards(plan, visits)
    within = [visit for visit in visits if visit.forward in whole]
    copied = sum(visit.copied_bytes for visit in within)
    read = sum(read_of(visit) for visit in within if read_span(visit) is not None)
    return Traffic(
        copies=counters.copies,
        copied_bytes=counters.copied_bytes,
        copied_bytes_per_forward=copied // len(whole) if whole else None,
        planned_copied_bytes_per_forward=plan.copied_bytes_per_forward,
        copy_bytes_per_second=_rate(copies),
        reads=counters.reads,
        read_bytes=counters.read_bytes,
        read_bytes_per_forward=read // len(whole) if whole else None,
        planned_read_bytes_per_forward=plan.read_bytes_per_forward,
        read_bytes_per_second=_rate(reads),
        realigned_bytes=counters.moved_bytes,
        whole_forwards=len(whole),
        gathers=counters.gathers,
        gathered_bytes=counters.gathered_bytes,
    )


def times_of(plan: SwapPlan, measured: Measured) -> Times:
    """Compute, hidden and exposed seconds of the timed visits, and the stalls by name."""
    counters, visits = measured.counters, measured.visits
    whole = _whole_forwards(plan, visits)
    within = sum(v.compute_seconds + v.exposed_seconds for v in visits if v.forward in whole)
    unmeasured = sum(has_unmeasured_transfer(visit) for visit in visits)
    told = [visit for visit in visits if not has_unmeasured_transfer(visit)]
    return Times(
        forwards=counters.forwards,
        visits=counters.visits,
        timed_visits=len(visits),
        untimed_visits=counters.untimed_visits,
        compute_seconds=sum(v.compute_seconds for v in visits) if visits else None,
        exposed_seconds=sum(v.exposed_seconds for v in visits) if visits else None,
        hidden_seconds=sum(hidden_seconds(v) for v in told) if told else None,
        unmeasured_transfers=unmeasured,
        on_demand=counters.on_demand,
        late=tuple((visit.forward, visit.unit) for visit in visits if is_late(visit)),
        host_waits=counters.host_waits,
        forward_seconds=within / len(whole) if whole else None,
        planned_forward_seconds=None if plan.timing is None else plan.timing.block_seconds,
    )


def peaks_of(plan: SwapPlan, measured: Measured) -> Peaks:
    """The peaks on device and host, beside what the plan allots."""
    return Peaks(
        device_bytes=measured.device_peak_bytes,
        planned_device_bytes=plan.device_bytes,
        reserve_bytes=plan.reserve_bytes,
        host_bytes=measured.host_peak_bytes,
        pinned_bytes=plan.pinned_bytes,
        staging_bytes=plan.staging_buffers * plan.staging_bytes,
        planned_peak_bytes=plan.peak_bytes,
    )


_TIERS: tuple[Tier, Tier, Tier] = ("resident", "ram", "disk")


def _group(plan: SwapPlan, tier: Tier) -> Group:
    units = [unit for unit in plan.units if unit.tier == tier]
    return Group(tuple(unit.name for unit in units), sum(unit.slab_bytes for unit in units))


def _rate(transfers: list[tuple[int, Span]]) -> float | None:
    seconds = busy_seconds(span for _, span in transfers)
    return sum(nbytes for nbytes, _ in transfers) / seconds if seconds > 0.0 else None


def _whole_forwards(plan: SwapPlan, visits: tuple[Visit, ...]) -> set[int]:
    # A forward that skipped, repeated or failed to time a block says nothing about the plan.
    expected = sorted(unit.name for unit in plan.units)
    by_forward: dict[int, list[str]] = {}
    for visit in visits:
        by_forward.setdefault(visit.forward, []).append(visit.unit)
    return {forward for forward, names in by_forward.items() if sorted(names) == expected}
