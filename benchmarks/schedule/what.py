"""Owns the grid of the schedule benchmark: what is run at which points, and the bound of each."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

BLOCKS = 40
BLOCK_TENSORS = 4
TENSOR_BYTES = 16 * 1024
# Where ranks read parts of a file: large enough for a sector at the ends not to count.
READ_TENSOR_BYTES = 1024 * 1024
TARGET = 1.02
FRACTIONS = tuple(tenth / 10 for tenth in range(1, 11))
# Even on the logarithm, and closer where transfer and compute are near each other.
RATIOS = (
    0.1,
    0.16,
    0.25,
    0.4,
    0.63,
    0.8,
    0.9,
    0.95,
    1.0,
    1.05,
    1.1,
    1.25,
    1.6,
    2.5,
    4.0,
    6.3,
    10.0,
)
PEER_FRACTIONS = (0.2, 0.5, 0.8, 1.0)
PEER_RATIOS = (0.1, 0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0, 10.0)
READ_RATIOS = (0.25, 0.8, 1.0, 1.25, 4.0)
TIERS = ("ram", "disk")
Spread = Literal["spread", "contiguous"]


@dataclass(frozen=True, slots=True)
class Setting:
    """How our engine is run: `slots` None lets the plan choose.

    `in_ram`: from a checkpoint file, the share of the streamed blocks that rest in RAM.
    `ranks` that bring each a part of a block, and get the others' at `gather` 1e9 bytes a second.
    `disk`: 1e9 bytes a second of the one disk from which all ranks read their parts.
    """

    slots: int | None = None
    residents: Spread = "spread"
    in_ram: float = 0.0
    ranks: int = 1
    gather: float = 0.0
    disk: float = 0.0


AUTOMATIC = "ours"
TWO_SLOTS = "ours, two slots"
CONTIGUOUS = "ours, residents contiguous"
TWO_SLOTS_CONTIGUOUS = "ours, two slots, residents contiguous"
BOTH = "ours, half in RAM and half on disk"
# Of the streamed blocks, what rests on disk; the others are in RAM.
SHARES = {
    BOTH if share == 50 else f"ours, {share} % on disk and the others in RAM": share / 100
    for share in range(10, 100, 10)
}
# Ranks, and 1e9 bytes a second of their gathers: half as fast as the links, as fast, and twice.
IN_PARTS = {
    f"ours, {ranks} ranks, gathers at {gather:g} GB/s": Setting(ranks=ranks, gather=gather)
    for ranks in (2, 4, 8)
    for gather in (5.0 * (ranks - 1), 10.0 * (ranks - 1), 20.0 * (ranks - 1))
}
# ... from one file: the disk slower than all, as fast as the links together, faster than all.
READ_IN_PARTS = {
    f"ours, {ranks} ranks, gathers at {gather:g} GB/s, disk at {disk:g}{', half in RAM' * half}":
        Setting(ranks=ranks, gather=gather, disk=disk, in_ram=half / 2)
    for ranks in (2, 4, 8)
    for gather, disk, half in (
        (10.0 * (ranks - 1), 2.0, 0),
        (10.0 * (ranks - 1), 10.0 * ranks, 0),
        (10.0 * (ranks - 1), 20.0 * ranks, 0),
        (5.0 * (ranks - 1), 10.0 * ranks, 0),
        (10.0 * (ranks - 1), 10.0 * ranks, 1),
    )
}  # fmt: skip
HELD_TO_TARGET = (AUTOMATIC, *SHARES, *IN_PARTS, *READ_IN_PARTS)
OURS: dict[str, Setting] = {
    AUTOMATIC: Setting(),
    TWO_SLOTS: Setting(slots=2),
    CONTIGUOUS: Setting(residents="contiguous"),
    TWO_SLOTS_CONTIGUOUS: Setting(slots=2, residents="contiguous"),
}
PEERS = (
    "diffusers group offload, stream",
    "diffusers group offload, record_stream",
    "LightX2V",
    "mmgp",
    "musubi-tuner, pinned",
    "musubi-tuner, staged",
    "WanVideoWrapper, use_non_blocking",
    "WanVideoWrapper",
)


@dataclass(frozen=True, slots=True)
class Rates:
    """What the simulated machine can do; all in 1e9 bytes per second of virtual time.

    `pageable`: copies between the device and host memory that is not pinned. `host`: a plain copy
    inside host memory, which only staging schedules make.
    """

    link: float = 10.0
    pageable: float = 5.0
    disk: float = 2.0
    host: float = 10.0

    def link_seconds(self, nbytes: int) -> float:
        return nbytes / (self.link * 1e9)

    def disk_seconds(self, nbytes: int) -> float:
        return nbytes / (self.disk * 1e9)


@dataclass(frozen=True, slots=True)
class Steps:
    """How many forwards are run before measuring and while measuring, one after the other."""

    warm: int = 4
    measured: int = 6


RATES, STEPS = Rates(), Steps()


@dataclass(frozen=True, slots=True)
class Case:
    """A share of blocks streamed, at a ratio of transfer to compute.

    `ratio` is transfer / compute of a whole forward: transfer for all streamed blocks over the
    slowest hop of their way, compute for all blocks.
    """

    streamed: int
    ratio: float
    blocks: int = BLOCKS

    @property
    def residents(self) -> int:
        return self.blocks - self.streamed

    def compute_seconds(self, transfer_seconds: float) -> float:
        """Seconds of one block that give the ratio for `transfer_seconds` of a forward."""
        return transfer_seconds / self.ratio / self.blocks

    def bound_seconds(self, transfer_seconds: float) -> float:
        """No schedule is faster: a forward computes everything and moves what is streamed."""
        return max(transfer_seconds, transfer_seconds / self.ratio)


def block_bytes() -> int:
    """Bytes of one block's weights."""
    return BLOCK_TENSORS * TENSOR_BYTES


def transfer_seconds(case: Case, rates: Rates = RATES) -> float:
    """Seconds for which the streamed blocks of a forward occupy the link."""
    return rates.link_seconds(case.streamed * block_bytes())


def tail(case: Case) -> Sequence[int]:
    """The streamed blocks when residents are contiguous, at the front of the model."""
    return range(case.residents, case.blocks)


@dataclass(frozen=True, slots=True)
class Point:
    """One run of the benchmark. `setting` None: the schedule is a peer's."""

    schedule: str
    tier: str
    case: Case
    setting: Setting | None = None


def points(*, quick: bool = False) -> Iterator[Point]:
    """Every run of the benchmark; `quick` leaves out most of them."""

    def some(values: tuple[float, ...]) -> tuple[float, ...]:
        return values[::-1][::4] if quick else values  # from the end: 100 % is always among them

    for tier in TIERS:
        for name, setting in OURS.items():
            for case in _cases(some(FRACTIONS), some(RATIOS)):
                yield Point(name, tier, case, setting)
    for name, share in SHARES.items():
        for case in _cases(some(PEER_FRACTIONS), some(PEER_RATIOS)):
            yield Point(name, "disk", case, Setting(in_ram=1 - share))
    for name, setting in IN_PARTS.items():
        for case in _cases(some(PEER_FRACTIONS), some(PEER_RATIOS)):
            yield Point(name, "parts", case, setting)
    for name, setting in READ_IN_PARTS.items():
        for case in _cases(some(PEER_FRACTIONS), some(READ_RATIOS)):
            yield Point(name, "file parts", case, setting)
    for name in PEERS:
        for case in _cases(some(PEER_FRACTIONS), some(PEER_RATIOS)):
            yield Point(name, "ram", case)


def _cases(fractions: tuple[float, ...], ratios: tuple[float, ...]) -> Iterator[Case]:
    for fraction in sorted(fractions):
        for ratio in ratios:
            yield Case(streamed=round(fraction * BLOCKS), ratio=ratio, blocks=BLOCKS)


@dataclass(frozen=True, slots=True)
class Row:
    """One schedule at one point of the grid. Seconds are virtual; counts are per forward."""

    schedule: str
    tier: str
    slots: int
    blocks: int
    streamed: int
    ratio: float
    step_seconds: float
    bound_seconds: float
    over_bound: float
    forward_thread_waits: float
    copied_bytes: float
    copied_back_bytes: float
    peak_bytes: int

    @property
    def fraction(self) -> float:
        return self.streamed / self.blocks

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def misses(rows: Sequence[Row]) -> list[Row]:
    """Our rows, as the plan chooses by itself, that are above the target."""
    return [row for row in rows if row.schedule in HELD_TO_TARGET and row.over_bound > TARGET]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What the engine's schedule takes in theory: its rules as a recurrence, without an engine.

        copy j    starts when copy j - 1 has ended and the slot it goes to is free,
                  that is when streamed block j - slots has been computed
        block k   starts when block k - 1 has ended and, if it is streamed, its copy has ended

    A forward of `blocks` equal blocks, some of them streamed through slots, times in seconds. The
    engine on the virtual clock has to agree with it to the last digits.
    """

    blocks: int
    streamed: Collection[int]
    slots: int
    copy_seconds: float
    compute_seconds: float

    def ends(self, forwards: int) -> list[float]:
        """When each of some forwards ends, the first from an empty pipeline."""
        streamed, ends = set(self.streamed), []
        computed: list[float] = []  # the end of each streamed block's compute, over all forwards
        copied = now = 0.0
        for _ in range(forwards):
            for block in range(self.blocks):
                if block in streamed:
                    earlier = len(computed) - self.slots
                    free = computed[earlier] if earlier >= 0 else 0.0
                    copied = max(copied, free) + self.copy_seconds
                    now = max(now, copied) + self.compute_seconds
                    computed.append(now)
                else:
                    now += self.compute_seconds
            ends.append(now)
        return ends

    def step_seconds(self, *, warm: int, measured: int) -> float:
        """Seconds of one forward in the steady state."""
        ends = self.ends(warm + measured)
        return (ends[-1] - ends[warm - 1]) / measured
