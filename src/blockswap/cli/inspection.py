"""Owns what `blockswap inspect` tells of a checkpoint, as values: found from headers alone."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import GeometryError
from ..layout.checkpoint import Checkpoint, StoredTensor
from ..layout.formats import unpacked
from ..layout.formats.main_dtype import is_quantised, main_dtype, refuse_whole_numbers
from ..layout.geometry import unit_of, units_in_order
from ..layout.summary import CheckpointSummary, describe

REST = "everything else"


@dataclass(frozen=True, slots=True)
class Part:
    """One unit, or all that is in no unit.

    `alignment` is the largest power of two, in bytes, that the place of every tensor in its file
    is a multiple of. `ranges` counts runs of adjacent bytes: 1 is read in one piece.
    """

    name: str
    tensors: int
    nbytes: int
    dtypes: tuple[str, ...]
    alignment: int
    ranges: int
    shards: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """A checkpoint as people ask for it; `files` are pairs of path and bytes, `units` are in the
    order in which a forward runs them."""

    summary: CheckpointSummary
    files: tuple[tuple[str, int], ...]
    prefix: str
    units: tuple[Part, ...]
    rest: Part
    left_out: tuple[str, ...]
    metadata: dict[str, str]
    computes_in: str | None
    notes: tuple[str, ...]
    refused: str | None  # why it does not open, where that is seen in its dtypes

    def to_dict(self) -> dict[str, Any]:
        """A value of dictionaries, lists, numbers and texts, ready for `json.dumps`."""
        summary = self.summary
        return {
            "label": summary.label,
            "models": list(summary.variants),
            "geometry": asdict(summary.geometry),
            "parameters": summary.parameters,
            "bytes": summary.nbytes,
            "dtype_bytes": dict(summary.dtype_bytes),
            "files": [{"path": path, "bytes": size} for path, size in self.files],
            "prefix": self.prefix,
            "units": [asdict(unit) for unit in self.units],
            "rest": asdict(self.rest),
            "aligned_16_share": summary.aligned_16,
            "aligned_4096_share": summary.aligned_4096,
            "left_out": list(self.left_out),
            "computes_in": self.computes_in,
            "notes": list(self.notes),
            "does_not_open": self.refused,
            "metadata": self.metadata,
        }


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Names, sizes and places of a Wan checkpoint's parts; quantised weights by their format.

    Raises GeometryError where the checkpoint is not a Wan transformer.
    """
    checkpoint = unpacked(checkpoint)
    summary = describe(checkpoint)
    tensors = tuple(checkpoint.tensors.values())
    by_unit: dict[str, list[StoredTensor]] = {}
    for key, tensor in checkpoint.tensors.items():
        unit = unit_of(key)
        by_unit.setdefault(REST if unit is None else unit.unit, []).append(tensor)
    return Inspection(
        summary=summary,
        files=tuple((str(header.path), header.file_bytes) for header in checkpoint.headers),
        prefix=checkpoint.prefix,
        units=tuple(part_of(name, by_unit[name]) for name in units_in_order(checkpoint.tensors)),
        rest=part_of(REST, by_unit[REST]),
        left_out=checkpoint.left_out,
        metadata=dict(checkpoint.metadata),
        computes_in=main_dtype(tensors) if any(map(is_quantised, tensors)) else None,
        notes=checkpoint.notes,
        refused=_refused(summary.label, tensors),
    )


def _refused(label: str, tensors: Iterable[StoredTensor]) -> str | None:
    try:
        for tensor in tensors:
            refuse_whole_numbers(label, tensor)
    except GeometryError as error:
        return str(error)
    return None


def equal_runs(units: Sequence[Part]) -> tuple[tuple[Part, ...], ...]:
    """Neighbouring units that differ in nothing but their name, together."""
    runs: list[list[Part]] = []
    for unit in units:
        if runs and _alike(runs[-1][-1], unit):
            runs[-1].append(unit)
        else:
            runs.append([unit])
    return tuple(tuple(run) for run in runs)


def _alike(first: Part, second: Part) -> bool:
    def told(part: Part) -> tuple[object, ...]:
        place = part.alignment, part.ranges, part.shards
        return part.name.rpartition(".")[0], part.tensors, part.nbytes, part.dtypes, place

    return told(first) == told(second)


def part_of(name: str, tensors: Sequence[StoredTensor]) -> Part:
    """The figures of some tensors, at least one, under a name."""
    stored = [p for t in tensors for p in (t.packing.parts if t.packing else (t,))]
    return Part(
        name=name,
        tensors=len(tensors),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        dtypes=_dtypes(tensors),
        alignment=min(_alignment(tensor.offset) for tensor in stored),
        ranges=_ranges(stored),
        shards=len({tensor.shard for tensor in stored}),
    )


def _dtypes(tensors: Iterable[StoredTensor]) -> tuple[str, ...]:
    """Element types and formats, the one with most bytes first."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        name = tensor.packing.format if tensor.packing else tensor.dtype
        sizes[name] = sizes.get(name, 0) + tensor.nbytes
    return tuple(sorted(sizes, key=lambda dtype: -sizes[dtype]))


def _alignment(offset: int) -> int:
    # The lowest set bit. A tensor never starts at byte 0: a header comes first.
    return offset & -offset


def _ranges(tensors: Iterable[StoredTensor]) -> int:
    count, shard, end = 0, -1, -1
    for tensor in sorted(tensors, key=lambda tensor: (tensor.shard, tensor.offset)):
        if (tensor.shard, tensor.offset) != (shard, end):
            count += 1
        shard, end = tensor.shard, tensor.offset + tensor.nbytes
    return count
