"""The grid of the schedule benchmark, and one row per schedule and point."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

from benchmarks.ours import Outcome, Setting, run_from_disk, run_from_ram
from benchmarks.peers import PEERS
from benchmarks.theirs import run_peer
from benchmarks.workload import Case

BLOCKS = 40
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
HELD_TO_TARGET = (AUTOMATIC, *SHARES)
OURS: dict[str, Setting] = {
    AUTOMATIC: Setting(),
    TWO_SLOTS: Setting(slots=2),
    CONTIGUOUS: Setting(residents="contiguous"),
    TWO_SLOTS_CONTIGUOUS: Setting(slots=2, residents="contiguous"),
}
RUNNERS = {"ram": run_from_ram, "disk": run_from_disk}


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


@dataclass(frozen=True, slots=True)
class Point:
    """One run that is still to be made."""

    schedule: str
    tier: str
    case: Case
    run: Callable[[Case], Outcome]

    def measure(self) -> Row:
        outcome = self.run(self.case)
        steady = outcome.steady
        return Row(
            schedule=self.schedule,
            tier=self.tier,
            slots=outcome.slots,
            blocks=self.case.blocks,
            streamed=self.case.streamed,
            ratio=self.case.ratio,
            step_seconds=steady.step_seconds,
            bound_seconds=outcome.bound_seconds,
            over_bound=outcome.over_bound,
            forward_thread_waits=steady.host_syncs,
            copied_bytes=steady.copied_bytes,
            copied_back_bytes=steady.copied_back_bytes,
            peak_bytes=steady.peak_bytes,
        )


def points(*, quick: bool = False) -> Iterator[Point]:
    """Every run of the benchmark; `quick` leaves out most of them."""

    def some(values: tuple[float, ...]) -> tuple[float, ...]:
        return values[::-1][::4] if quick else values  # from the end: 100 % is always among them

    for tier, runner in RUNNERS.items():
        for name, setting in OURS.items():
            for case in _cases(some(FRACTIONS), some(RATIOS)):
                yield Point(name, tier, case, partial(runner, setting=setting))
    for name, share in SHARES.items():
        mixed = partial(run_from_disk, setting=Setting(in_ram=1 - share))
        for case in _cases(some(PEER_FRACTIONS), some(PEER_RATIOS)):
            yield Point(name, "disk", case, mixed)
    for name in PEERS:
        for case in _cases(some(PEER_FRACTIONS), some(PEER_RATIOS)):
            yield Point(name, "ram", case, partial(run_peer, name))


def _cases(fractions: tuple[float, ...], ratios: tuple[float, ...]) -> Iterator[Case]:
    for fraction in sorted(fractions):
        for ratio in ratios:
            yield Case(streamed=round(fraction * BLOCKS), ratio=ratio, blocks=BLOCKS)
