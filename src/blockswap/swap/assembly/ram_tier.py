"""In which form a checkpoint's unit rests in RAM (decoded, or as stored where that is smaller).

What rests as it is stored is decoded at each visit, as if it came from the file; until then it
has no values to show, and its parameters are meta tensors like those of a unit on disk.
"""

from dataclasses import replace

from ...adapters.live import LiveUnit
from ...adapters.stored import StoredModel
from ...decode.unit_decoding import UnitDecoding
from ...layout.values import TensorSpec, UnitLayout
from ...store.ram import RamStore
from ...stream.units.binding import Binding
from .streamed_units import idle_binding, resting_on
from .unit_reader import Loader


def ram_decoding(model: StoredModel, unit: LiveUnit) -> UnitDecoding | None:
    """The decoding of a unit that rests in RAM as it is stored; None for one that is decoded."""
    decoding = model.decoding(unit)
    return decoding if decoding.rests_stored else None


def ram_layout(model: StoredModel, unit: LiveUnit) -> UnitLayout:
    """What the unit consists of in RAM."""
    decoding = ram_decoding(model, unit)
    if decoding is None:
        return unit.layout
    return replace(unit.layout, tensors=(TensorSpec("stored", decoding.stored),))


def fill_ram(
    store: RamStore, index: int, model: StoredModel, unit: LiveUnit, loader: Loader
) -> Binding:
    """Reads the unit into its place in RAM; its places, with what hangs there between forwards."""
    name, copies = unit.layout.name, loader.reading.fills
    if ram_decoding(model, unit) is None:
        leaves = loader.decoded(name, unit.tensors)
        return resting_on(unit, store.fill(index, leaves, copies=copies))
    store.fill(index, loader.stored(name, unit.tensors), copies=copies)
    return idle_binding(unit)
