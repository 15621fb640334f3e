"""Order: this module owns where each tensor lies in the converted file.

    |header, spaces|blocks.0 ........|pad|blocks.1 ........|pad| ... |the rest| other tensors|
    0              4096 x n          4096 x m

Units come in the order in which a forward runs them, each in one run that starts on a page. The
format allows no holes, Wan's blocks are no whole number of pages (but for TI2V-5B in fp32), and a
model has fewer small tensors outside its blocks than gaps between them: no order of its own
tensors does it. So tensors of zeros fill the gaps, named `[prefix]blockswap_padding.N`.
Within a unit tensors whose size is a multiple of 256 come first, so that in Wan's geometries every
one starts at a multiple of 256.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..layout.checkpoint import Checkpoint
from ..layout.dtypes import ITEM_BYTES
from ..layout.geometry import WanGeometry, unit_of, units_in_order
from ..layout.geometry.restated import needed_statements
from ..layout.geometry.stated import stated_by
from ..layout.prefix import PADDING
from ..layout.slab import LEAF_ALIGNMENT, align_up
from ..layout.writing import header_bytes
from .eight_bits import BESIDE, FP8_SCALED, Eighth, new_tensors
from .rules import new_dtype
from .weights import SourceTensor

PAGE = 4096
_ZERO_DTYPE = "uint8"
# What a source says of how it is packed, and a plain file must not.
_OF_PARTS = "split."  # what a GGUF file in parts says of them
_QUANTISERS = ("_quantization_metadata", "general.file_type", "general.quantization_version")


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor of the new file; `source` is where it comes from (shard, tensor), None: zeros."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: tuple[int, SourceTensor | Eighth] | None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class NewLayout:
    """The new file: its first bytes, then its tensors in this order."""

    header: bytes
    tensors: tuple[Placed, ...]

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)

    @property
    def padding_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors if tensor.source is None)


def new_layout(
    checkpoint: Checkpoint,
    dtype: str | None,
    *,
    everything: bool,
    padding: bool,
    metadata: Mapping[str, str] | None = None,
) -> NewLayout:
    """Lays the checkpoint out in one file; `padding` fills up to the next page before each unit.

    `metadata` is the new file's, by default the checkpoint's own.
    """
    tensors: list[Placed] = []
    end = 0
    for group in _groups(checkpoint, dtype, everything=everything):
        gap = align_up(end, PAGE) - end
        if gap and padding:
            number = sum(tensor.source is None for tensor in tensors)
            name = f"{checkpoint.prefix}{PADDING}.{number}"
            tensors.append(Placed(name, _ZERO_DTYPE, (gap,), None))
            end += gap
        tensors += group
        end += sum(tensor.nbytes for tensor in group)
    said = checkpoint.metadata if metadata is None else metadata
    header = header_bytes(said, tensors, alignment=PAGE)
    return NewLayout(header, tuple(tensors))


def _groups(
    checkpoint: Checkpoint, dtype: str | None, *, everything: bool
) -> Iterator[Sequence[Placed]]:
    """The units in execution order, then all that is in none, without empty groups."""
    groups: dict[str | None, list[Placed]] = {
        unit: [] for unit in (*units_in_order(checkpoint.tensors), None)
    }
    cast = BESIDE if dtype == FP8_SCALED else dtype
    for made in new_tensors(checkpoint, eight_bits=dtype == FP8_SCALED):
        tensor, key = made.source[1], made.key
        new, unit = tensor.dtype, None if key is None else unit_of(key)
        if key is not None and not isinstance(tensor, Eighth):
            new = new_dtype(checkpoint.tensors[key], cast, everything=everything)
        group = groups[None if unit is None else unit.unit]
        group.append(Placed(made.name, new, tensor.shape, made.source))
    for group in groups.values():
        if group:
            # Stable: tensors of equal alignment keep the order of their files.
            yield sorted(group, key=lambda tensor: -_alignment(tensor.nbytes))


def _alignment(nbytes: int) -> int:
    """The largest power of two that divides a size, up to what leaves are aligned to."""
    return min(nbytes & -nbytes, LEAF_ALIGNMENT) if nbytes else LEAF_ALIGNMENT


def new_metadata(checkpoint: Checkpoint, geometry: WanGeometry | None) -> dict[str, str]:
    """The checkpoint's own, and what only a config.json beside it says: one file has none."""
    needed = {} if geometry is None else needed_statements(geometry, stated_by(checkpoint))
    kept = {k: v for k, v in checkpoint.metadata.items() if not k.startswith(_OF_PARTS)}
    if any(tensor.packing is not None for tensor in checkpoint.tensors.values()):
        for word in _QUANTISERS:
            kept.pop(word, None)
    return {**needed, **kept}
