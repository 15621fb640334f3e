"""Layouts as plain values: what a block consists of and where its bytes lie in a slab.

A *unit* is anything the engine can stream as one piece: a transformer block, a VACE block or an
embedder. A unit has tensors (parameters and large constant buffers); a tensor has one or more
*leaves*, the plain strided arrays it is rebuilt from. An ordinary parameter is its own single
leaf; a quantised tensor subclass has several, and a recipe that puts them together again.

    unit "blocks.3"
    ├── tensor "self_attn.q.weight"      leaf ()          bfloat16 [5120, 5120]
    └── tensor "ffn.0.weight"            leaf (_qdata,)   float8_e4m3fn [13824, 5120]
        (a tensor subclass)              leaf (_scale,)   float32 []
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from .dtypes import ITEM_BYTES

UnitKind = Literal["block", "vace", "text_embedder", "image_embedder"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One plain strided array. `path` leads from the tensor to it (empty for a plain tensor)."""

    path: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements; leaves are dense, so also of the memory they span."""
        return self.elements * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to rebuild a tensor subclass from its parts (torch's `__tensor_unflatten__` protocol).

    `wrapper` is the class, `context` what its `__tensor_flatten__` returned beside the names;
    both are opaque here. `shape` and `stride` are those of the outer tensor. A part that is
    itself a subclass has a recipe of its own, a plain part has None.
    """

    wrapper: type
    context: Any
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    parts: tuple[tuple[str, "Recipe | None"], ...]


@dataclass(frozen=True, slots=True)
class Likeness:
    """How to rebuild a parameter subclass that is one array with plain notes on it: its class.

    The notes (such as the block type of a GGUF parameter) are those of the tensor it is made like.
    """

    wrapper: type


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A parameter or constant buffer of a unit; `name` is dotted and relative to the unit."""

    name: str
    leaves: tuple[Leaf, ...]
    recipe: Recipe | Likeness | None = None

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.leaves)


@dataclass(frozen=True, slots=True)
class UnitLayout:
    """Everything the engine needs to know of one streamable unit."""

    name: str  # where it hangs in the model: "blocks.3"
    kind: UnitKind
    index: int  # position among units of its kind: the number users write
    tensors: tuple[TensorSpec, ...]

    @property
    def list_name(self) -> str:
        """The list that the unit is a member of, "single_transformer_blocks"."""
        return self.name.rpartition(".")[0]

    @property
    def place(self) -> int | None:
        """Its place in that list; None for a member that has a name instead, and an embedder."""
        last = self.name.rpartition(".")[2]
        return int(last) if last.isdecimal() else None

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return tuple(leaf for tensor in self.tensors for leaf in tensor.leaves)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """The units of a model in execution order, and the size of all the rest.

    `rest` holds the tensors outside every unit (patch embedding, time embedding, head, and the
    embedders where they are not streamed); they stay on the compute device.
    """

    label: str
    units: tuple[UnitLayout, ...]
    rest: tuple[TensorSpec, ...]

    def of_kind(self, kind: UnitKind) -> tuple[UnitLayout, ...]:
        return tuple(unit for unit in self.units if unit.kind == kind)


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major array of `shape`."""
    stride, step = [], 1
    for extent in reversed(shape):
        stride.append(step)
        step *= max(extent, 1)
    return tuple(reversed(stride))
