"""Owns what the disk benchmark runs, and what its rows are held against: models, clips, targets."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isqrt
from typing import Any

from blockswap.layout.geometry import WanGeometry

OURS, RESIDENT = "blockswap", "all in RAM, no limit"
COMPUTE_TARGET, DISK_TARGET, BETWEEN_TARGET = 1.02, 1.05, 1.08
NOISE = 0.98  # a peer is faster beyond noise below this, if it is so in every round
THREADS = 2  # of torch, in every method
DIM, FFN, HEADS = 1536, 8960, 12  # Wan 2.1 T2V-1.3B
MB = 10**6


@dataclass(frozen=True, slots=True)
class Model:
    """Wan 1.3B with some of its blocks; `dtype` is that of the file and of the compute."""

    blocks: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.blocks} blocks, {self.dtype}"

    @property
    def geometry(self) -> WanGeometry:
        return WanGeometry(dim=DIM, ffn_dim=FFN, num_layers=self.blocks, num_heads=HEADS)


@dataclass(frozen=True, slots=True)
class Clip:
    """`tokens` of one frame's latents, patches of 2 x 2, and `text` tokens beside them."""

    tokens: int
    text: int

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width in latent pixels, as square as the number of tokens allows."""
        rows = next(n for n in range(isqrt(self.tokens), 0, -1) if self.tokens % n == 0)
        return 2 * rows, 2 * (self.tokens // rows)


@dataclass(frozen=True, slots=True)
class Case:
    """A model, the memory its methods may use, and the clips it is run with."""

    model: Model
    limit_bytes: int
    clips: tuple[Clip, ...]


DISK_BOUND = Clip(tokens=1, text=4)
CASES = (
    Case(Model(10, "bfloat16"), 1000 * MB, (DISK_BOUND, Clip(64, 64), Clip(400, 512))),
    Case(Model(10, "float32"), 1400 * MB, (DISK_BOUND, Clip(64, 64), Clip(400, 512))),
    Case(Model(30, "float32"), 1400 * MB, (DISK_BOUND,)),
    Case(Model(30, "bfloat16"), 1000 * MB, (DISK_BOUND, Clip(390, 512))),
    Case(Model(10, "bfloat16"), 1000 * MB, (Clip(2000, 512),)),
)
QUICK = (Case(Model(4, "bfloat16"), 800 * MB, (DISK_BOUND, Clip(64, 64))),)


def names_of(cases: Sequence[Case]) -> str:
    """The models, each once, for a sentence."""
    return "; ".join(dict.fromkeys(case.model.name for case in cases))


def rounds_of(model: Model, clip: Clip) -> int:
    """Short forwards are repeated more often."""
    if clip.tokens < 100:
        return 6
    return 3 if model.blocks > 10 or clip.tokens > 1000 else 4


@dataclass(frozen=True, slots=True)
class Sample:
    """One forward of one method."""

    seconds: float
    read_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Track:
    """A method in one row. `limit_bytes` is what it ran in at last; None is no limit.

    `killed` are the limits that it did not survive, `error` what it said instead of running.
    Peaks are of the whole process group up to the end of the row.
    """

    samples: tuple[Sample, ...] = ()
    limit_bytes: int | None = None
    killed: tuple[int, ...] = ()
    error: str = ""
    anonymous_bytes: int = 0
    cached_bytes: int = 0
    peak_bytes: int = 0

    @property
    def seconds(self) -> list[float]:
        return [sample.seconds for sample in self.samples]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class Row:
    """All methods over the same rounds; `raw[threads]` are seconds of the raw read.

    `discarding` are seconds of a raw read that keeps nothing of what it brings, `both` those of a
    raw read and a forward all in RAM begun at once. Both are told beside the bound.
    """

    model: Model
    clip: Clip
    limit_bytes: int
    tracks: Mapping[str, Track]
    raw: Mapping[int, Sequence[float]] = field(default_factory=dict)
    discarding: Sequence[float] = ()
    both: Sequence[float] = ()

    @property
    def read(self) -> Sequence[float]:
        """Seconds of the raw read, round by round, in the setting that is best over all rounds."""
        return min(self.raw.values(), key=statistics.median)

    @property
    def compute(self) -> Sequence[float]:
        return self.tracks[RESIDENT].seconds

    @property
    def read_over_compute(self) -> float:
        return statistics.median(self.read) / statistics.median(self.compute)

    @property
    def kind(self) -> str:
        if self.read_over_compute >= 2:
            return "disk"
        return "compute" if self.read_over_compute <= 0.5 else "between"

    @property
    def bounds(self) -> list[float]:
        """What our row is held against, round by round."""
        if self.kind == "compute":
            return list(self.compute)
        if self.kind == "disk":
            return list(self.read)
        return [max(pair) for pair in zip(self.read, self.compute, strict=True)]

    @property
    def target(self) -> float:
        targets = {"compute": COMPUTE_TARGET, "disk": DISK_TARGET, "between": BETWEEN_TARGET}
        return targets[self.kind]

    def ratios(self, name: str, against: Sequence[float]) -> list[float]:
        """Seconds of the method over `against`, round by round."""
        return [a / b for a, b in zip(self.tracks[name].seconds, against, strict=True)]

    def over_bound(self, name: str) -> float:
        return statistics.median(self.ratios(name, self.bounds))

    def peers(self) -> list[str]:
        """Those that ran under the same limit as ours, to the end."""
        return [
            name
            for name, track in self.tracks.items()
            if name not in (OURS, RESIDENT) and track.samples and not track.killed
        ]

    def equal(self, name: str) -> bool:
        """Whether every output of the method is the one of the model in RAM, to the last bit."""
        wanted = {sample.digest for sample in self.tracks[RESIDENT].samples}
        return {sample.digest for sample in self.tracks[name].samples} == wanted

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Row":
        """The row that `as_json` told of, after it was written to a file and read again."""
        tracks = {
            name: Track(
                **track
                | {
                    "samples": tuple(Sample(**sample) for sample in track["samples"]),
                    "killed": tuple(track["killed"]),
                }
            )
            for name, track in data["tracks"].items()
        }
        raw = {int(threads): seconds for threads, seconds in data["raw"].items()}
        told = {"model": Model(**data["model"]), "clip": Clip(**data["clip"])}
        return cls(**data | told | {"tracks": tracks, "raw": raw})


def misses(row: Row) -> list[str]:
    """A sentence for each target that the row misses."""
    where = f"{row.model.name}, {row.clip.tokens} tokens"
    found = []
    if not row.tracks[OURS].samples or row.tracks[OURS].killed:
        return [f"{where}: ours did not run in {row.limit_bytes} bytes"]
    if row.over_bound(OURS) > row.target:
        found.append(
            f"{where}: ours takes {row.over_bound(OURS):.3f} x its bound, {row.target} is the "
            f"target ({row.kind})"
        )
    if not row.equal(OURS):
        found.append(f"{where}: our output is not that of the model in RAM")
    ours = row.tracks[OURS].seconds
    for name in row.peers():
        ratios = row.ratios(name, ours)
        if max(ratios) < 1 and statistics.median(ratios) < NOISE:
            found.append(f"{where}: {name} is faster, {statistics.median(ratios):.3f} x ours")
        if row.kind == "disk" and min(ratios) <= 1:
            found.append(f"{where}: {name} was as fast as ours in a round where the disk binds")
    return found


def in_order(rows: Sequence[Row]) -> list[Row]:
    """As in `CASES`, whenever they were measured."""
    order = [(case.model, clip) for case in CASES for clip in case.clips]
    return sorted(rows, key=lambda row: order.index((row.model, row.clip)))
