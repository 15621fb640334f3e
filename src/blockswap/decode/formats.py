"""Which steps decode a packed weight: one decoder for each name that `layout.formats` gives."""

from collections.abc import Callable, Mapping, Sequence

from ..layout.checkpoint import Packing
from ..layout.values import Leaf
from .four_bits import FourBits
from .gguf_blocks import GgufBlocks
from .rotated import Rotated
from .scaled import Scaled
from .steps import Step
from .unit_decoding import LeafForm, stored_leaf

_GGUF = "GGUF "
_Make = Callable[[Packing, Sequence[Leaf], Leaf], Step]


def packed_form(packing: Packing, computed: Leaf) -> LeafForm:
    """The stored form of a packed weight, and the step that dequantises it into `computed`."""
    stored = tuple(stored_leaf(part.dtype, part.shape) for part in packing.parts)
    if packing.format.startswith(_GGUF):
        step: Step = GgufBlocks(packing.format.removeprefix(_GGUF), stored[0], computed)
    else:
        step = _DECODERS[packing.format](packing, stored, computed)
    return LeafForm(stored, computed, (step,))


def _scaled(work: str | None = None, *, tiled: bool = False) -> _Make:
    """In the arithmetic of dtype `work`: None is the compute dtype, "scale" that of the scale."""

    def make(packing: Packing, stored: Sequence[Leaf], computed: Leaf) -> Step:
        weight, scale = stored
        dtype = {None: computed.dtype, "scale": scale.dtype}.get(work, work)
        return Scaled(weight, scale, computed, packing.grid, str(dtype), tiled)

    return make


def _rotated(packing: Packing, stored: Sequence[Leaf], computed: Leaf) -> Step:
    return Rotated(stored[0], stored[1], computed, packing.grid, packing.rotation)


def _four_bits(packing: Packing, stored: Sequence[Leaf], computed: Leaf) -> Step:
    return FourBits(stored[0], stored[1], stored[2], computed)


_DECODERS: Mapping[str, _Make] = {
    "fp8 scaled": _scaled(),
    "fp8 in groups": _scaled("scale"),
    "fp8 in blocks": _scaled("float32"),
    "int8 scaled": _scaled("float32"),
    "int8 rotated": _rotated,
    "mxfp8": _scaled("float32", tiled=True),
    "nvfp4": _four_bits,
    "quanto": _scaled("scale"),
}
