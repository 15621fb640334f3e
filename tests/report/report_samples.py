"""Plans and measurements for the report's tests, made by a small exact model of a schedule."""

import os
from dataclasses import dataclass
from pathlib import Path

from blockswap.events import Counters, Measured, Visit
from blockswap.plan.swap_plan import PlannedUnit, SwapPlan, Tier

MIB = 1 << 20
GOLDEN = Path(__file__).parent / "golden"


def assert_golden(name: str, text: str) -> None:
    """Compares with the file kept; `BLOCKSWAP_WRITE_GOLDEN=1` writes it anew."""
    path = GOLDEN / name
    if os.environ.get("BLOCKSWAP_WRITE_GOLDEN"):
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Speeds:
    """Seconds a block takes in each engine."""

    compute: float = 0.010
    copy: float = 0.006
    read: float = 0.012
    readers: int = 1


def plan_of(tiers: str, *, device: str = "cuda:0", slots: int = 2, prefetch: int = 1) -> SwapPlan:
    """A plan of equal blocks of 100 MiB; `tiers` has one letter a block, as `block_map` prints."""
    tier_of: dict[str, Tier] = {"R": "resident", "m": "ram", "d": "disk"}
    units = tuple(
        PlannedUnit(f"blocks.{i}", tier_of[letter], 100 * MIB) for i, letter in enumerate(tiers)
    )
    streamed, disk = len(tiers) - tiers.count("R"), tiers.count("d")
    return SwapPlan(
        device=device,
        units=units,
        slots=slots,
        slot_bytes=100 * MIB,
        prefetch=prefetch,
        rest_bytes=50 * MIB,
        decode_bytes=0,
        device_bytes=(50 + 100 * (tiers.count("R") + slots)) * MIB,
        reserve_bytes=512 * MIB,
        pinned_bytes=100 * MIB * tiers.count("m"),
        staging_buffers=2 if disk else 0,
        staging_bytes=100 * MIB,
        copied_bytes_per_forward=0 if device == "cpu" else 100 * MIB * streamed,
        read_bytes_per_forward=100 * MIB * disk,
        sentences=(f"{streamed} of {len(tiers)} blocks are streamed as asked",),
    )


def measured_of(plan: SwapPlan, forwards: int = 2, speeds: Speeds = Speeds()) -> Measured:
    """Runs the plan on a clock: one compute stream, one copy engine, `speeds.readers` readers."""
    visits: list[Visit] = []
    now = copy_free = 0.0
    readers = [0.0] * speeds.readers
    slot_free = [0.0] * max(plan.slots, 1)
    streamed = 0
    for forward in range(forwards):
        for unit in plan.units:
            arrived, ready, slot = now, now, None
            copy: tuple[float, float] | tuple[None, None] = (None, None)
            read: tuple[float, float] | tuple[None, None] = (None, None)
            copied = 0
            if unit.tier != "resident":
                slot = streamed % plan.slots
                streamed += 1
                source = slot_free[slot] if plan.device == "cpu" else 0.0
                if unit.tier == "disk":
                    readers.sort()
                    begin = max(readers[0], source, slot_free[slot] - speeds.read)
                    read = (begin, begin + speeds.read)
                    ready = source = readers[0] = begin + speeds.read
                if plan.device != "cpu":
                    begin = max(copy_free, slot_free[slot], source)
                    copy = (begin, begin + speeds.copy)
                    ready = copy_free = begin + speeds.copy
                    copied = unit.slab_bytes
            started = max(arrived, ready)
            now = started + speeds.compute
            if slot is not None:
                slot_free[slot] = now
            visits.append(
                Visit(
                    forward, unit.name, unit.tier, slot, copied, arrived, started, now, *copy, *read
                )
            )
    reads = sum(v.read_started is not None for v in visits)
    copies = sum(v.copy_started is not None for v in visits)
    return Measured(
        visits=tuple(visits),
        counters=Counters(
            forwards=forwards,
            visits=len(visits),
            copies=copies,
            copied_bytes=sum(v.copied_bytes for v in visits),
            read_bytes=reads * 100 * MIB,
            reads=reads,
            on_demand=1 if streamed else 0,
        ),
        device_peak_bytes=plan.device_bytes + 200 * MIB,
        host_peak_bytes=None,
        sentences=(),
    )
