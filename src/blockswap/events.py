"""What happened, as plain values: one record a block visit, and exact counters beside them.

Times are seconds on the compute device's own clock, measured from the opening of the swap. A
figure that was not measured (its event had not passed when its place was needed again) is None;
counters are kept by the host and are always exact.
"""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Visit:
    """One run of one unit.

    The compute stream arrives at `arrived`, waits until the slot holds the block's bytes, and
    computes from `started` to `ended`; `started - arrived` is exposed transfer time. The copy into
    the slot ran from `copy_started` to `copy_ended` (None for a resident, or when the block was
    still in a slot). A block from disk was read from `read_started` to `read_ended`. It was
    brought by so many ranks as `parts` says, each of which brought its part.
    """

    forward: int
    unit: str
    tier: str  # "resident", "ram" or "disk"
    slot: int | None
    copied_bytes: int
    arrived: float
    started: float
    ended: float
    copy_started: float | None = None
    copy_ended: float | None = None
    read_started: float | None = None
    read_ended: float | None = None
    parts: int = 1

    @property
    def exposed_seconds(self) -> float:
        return max(0.0, self.started - self.arrived)

    @property
    def compute_seconds(self) -> float:
        return self.ended - self.started

    @property
    def copy_seconds(self) -> float:
        if self.copy_started is None or self.copy_ended is None:
            return 0.0
        return self.copy_ended - self.copy_started


@dataclass(slots=True)
class Counters:
    """Exact counts since the swap was opened, kept by the host."""

    forwards: int = 0
    visits: int = 0
    untimed_visits: int = 0
    copies: int = 0
    copied_bytes: int = 0
    read_bytes: int = 0
    reads: int = 0
    moved_bytes: int = 0  # bytes moved once more on the host because the file laid them unaligned
    on_demand: int = 0  # visits whose copy had not been asked for before the block was entered
    host_waits: int = 0  # times the forward thread waited for a file read
    gathers: int = 0  # visits of which other ranks brought a part
    gathered_bytes: int = 0  # what came from them
    looked_up_rows: int = 0  # of tables that are read by rows
    looked_up_bytes: int = 0

    def copy(self) -> "Counters":
        """The counts of this moment."""
        return replace(self)


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything a report is made of beside the plan. Peaks in bytes, None where unknown."""

    visits: tuple[Visit, ...]
    counters: Counters = field(default_factory=Counters)
    device_peak_bytes: int | None = None
    host_peak_bytes: int | None = None
    sentences: tuple[str, ...] = ()
