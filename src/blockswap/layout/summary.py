"""Summaries: this module owns the figures that tell a person what a checkpoint is."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .checkpoint import Checkpoint, StoredTensor
from .geometry import WanGeometry, infer_geometry, name_variants, unit_of


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """What a checkpoint holds, in bytes and counts.

    `variants` are the published models of this geometry (none: an unpublished one). `unit_bytes`
    is for each streamable unit, in file order; `rest_bytes` all that is in no unit.
    `file_bytes` counts the files themselves, `nbytes` the transformer's tensors in them.
    `aligned_16` and `aligned_4096` are the shares, 0 to 1, of tensors whose file offset is a
    multiple of 16 and 4096 bytes.
    """

    label: str
    variants: tuple[str, ...]
    geometry: WanGeometry
    dtype_bytes: Mapping[str, int]
    unit_bytes: Mapping[str, int]
    block_count: int
    block_bytes_min: int
    block_bytes_max: int
    rest_bytes: int
    parameters: int
    nbytes: int
    file_bytes: int
    aligned_16: float
    aligned_4096: float


def describe(checkpoint: Checkpoint) -> CheckpointSummary:
    """The summary of a Wan transformer's checkpoint. Raises GeometryError when it is none."""
    geometry = infer_geometry(checkpoint)
    tensors = tuple(checkpoint.tensors.values())
    units, rest_bytes = _unit_bytes(tensors)
    blocks = [nbytes for name, nbytes in units.items() if name.startswith("blocks.")]
    scales = frozenset((*geometry.extras, *geometry.unused))
    return CheckpointSummary(
        label=checkpoint.label,
        variants=name_variants(geometry),
        geometry=geometry,
        dtype_bytes=MappingProxyType(bytes_by_dtype(tensors)),
        unit_bytes=MappingProxyType(units),
        block_count=geometry.num_layers,
        block_bytes_min=min(blocks),
        block_bytes_max=max(blocks),
        rest_bytes=rest_bytes,
        parameters=sum(math.prod(t.shape) for t in tensors if t.key not in scales),
        nbytes=checkpoint.nbytes,
        file_bytes=sum(header.file_bytes for header in checkpoint.headers),
        aligned_16=_aligned(tensors, 16),
        aligned_4096=_aligned(tensors, 4096),
    )


def _unit_bytes(tensors: Iterable[StoredTensor]) -> tuple[dict[str, int], int]:
    units: defaultdict[str, int] = defaultdict(int)
    rest = 0
    for tensor in tensors:
        if unit := unit_of(tensor.key):
            units[unit.unit] += tensor.nbytes
        else:
            rest += tensor.nbytes
    return dict(units), rest


def bytes_by_dtype(tensors: Iterable[StoredTensor]) -> dict[str, int]:
    """Bytes by element type, or format of what is packed, largest first."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.packing.format if tensor.packing else tensor.dtype] += tensor.nbytes
    return dict(counts.most_common())


def _aligned(tensors: tuple[StoredTensor, ...], alignment: int) -> float:
    return sum(tensor.offset % alignment == 0 for tensor in tensors) / len(tensors)
