"""What a unit resident from the start becomes when it leaves: a slab in RAM, or reads from disk.

Made when the first such unit leaves and not before: most never do.
"""

from collections.abc import Callable, Mapping

from ...adapters.adapted import InMemory
from ...adapters.live import LiveTensor, LiveUnit
from ...adapters.stored import StoredModel
from ...plan import Facts, Tier, UnitFacts
from ...store.ram import RamStore
from ...stream.units.unit import StreamedUnit
from ..assembly.parts import Parts
from ..assembly.ram_tier import fill_ram, ram_decoding, ram_layout
from ..assembly.streamed_units import idle_binding, ram_unit
from ..assembly.unit_reader import Loader
from ..assembly.unit_store import HostMemory, UnitStore
from ..assembly.unpinned import ensure_staging


class RamForms:
    """Units of a live module: each moves from its own host memory into pinned memory.

    RAM is not doubled: a unit is adopted into the arena as at opening, its old memory goes.
    """

    def __init__(self, parts: Parts, facts: Facts, host: HostMemory, loras: InMemory) -> None:
        self._parts = parts
        self._host = host
        self._loras = loras
        self._sizes = {unit.name: unit for unit in facts.units}
        self._pin_budget = host.pin_budget - parts.plan.pinned_bytes
        self._stores: dict[str, UnitStore] = {}

    def tier(self, name: str) -> Tier:
        return "ram"

    def fits(self, name: str) -> bool:
        unit, pool = self._sizes[name], self._parts.pool
        if pool.slots and unit.ram_decode_bytes > pool.sizes.decode_bytes:
            return False
        nbytes = unit.ram_slab_bytes
        return fits_slots(self._parts, nbytes) and fits_staging(self._parts, nbytes)

    def make(self, unit: LiveUnit) -> StreamedUnit:
        name, parts = unit.layout.name, self._parts
        store = self._stores.get(name)
        if store is None:
            store = self._host.store([self._loras.layout(unit)], self._pin_left())
            self._stores[name] = store
        store.adopt(0, self._loras.tensors(unit))
        ensure_staging(parts, store, staging_bytes(parts))
        return ram_unit(parts, store, 0, unit, idle_binding(unit), self._loras.decoding(unit))

    def close(self) -> None:
        for store in self._stores.values():
            store.give_back(0)
        self._stores.clear()

    def _pin_left(self) -> int:
        return self._pin_budget - sum(store.pinned_bytes for store in self._stores.values())


class FileForms:
    """Units of a checkpoint: read from the file, or kept in RAM while its budget has room."""

    def __init__(
        self,
        parts: Parts,
        facts: Facts,
        *,
        ram_budget: int,
        model: StoredModel,
        loader: Loader,
        disk_unit: Callable[[LiveUnit], StreamedUnit],
    ) -> None:
        self._parts = parts
        self._sizes: Mapping[str, UnitFacts] = {unit.name: unit for unit in facts.units}
        self._room = ram_budget
        self._model = model
        self._loader = loader
        self._disk_unit = disk_unit
        self._stores: dict[str, RamStore] = {}
        self._metas: list[tuple[StreamedUnit, tuple[LiveTensor, ...]]] = []

    def tier(self, name: str) -> Tier:
        if name in self._stores:
            return "ram"
        return "ram" if self._sizes[name].ram_slab_bytes <= self._room else "disk"

    def fits(self, name: str) -> bool:
        unit, pool = self._sizes[name], self._parts.pool
        nbytes, decoding = unit.disk_slab_bytes or 0, unit.decode_bytes
        if self.tier(name) == "ram":
            nbytes, decoding = unit.ram_slab_bytes, unit.ram_decode_bytes
        decodes = not pool.slots or decoding <= pool.sizes.decode_bytes
        return decodes and fits_slots(self._parts, nbytes) and fits_staging(self._parts, nbytes)

    def make(self, unit: LiveUnit) -> StreamedUnit:
        name, parts = unit.layout.name, self._parts
        if self.tier(name) == "disk":
            parts.pool.add_staging(staging_bytes(parts))
            return self._disk_unit(unit)
        store = self._stores.get(name)
        if store is None:
            layout = ram_layout(self._model, unit)
            store = RamStore([layout], lender=parts.device, pin_budget=self._room)
            self._room -= self._sizes[name].ram_slab_bytes
            self._stores[name] = store
        binding = fill_ram(store, 0, self._model, unit, self._loader)
        ensure_staging(parts, store, staging_bytes(parts))
        decoding = ram_decoding(self._model, unit)
        streamed = ram_unit(parts, store, 0, unit, binding, decoding)
        self._metas.append((streamed, unit.tensors))
        return streamed

    def close(self) -> None:
        for streamed, tensors in self._metas:
            streamed.binding.rest_on([live.tensor for live in tensors])
        for store in self._stores.values():
            store.give_back(0)
        self._metas.clear()
        self._stores.clear()


def fits_slots(parts: Parts, nbytes: int) -> bool:
    """Whether a slab fits the slots; where there are none yet, they are made to fit."""
    return not parts.pool.slots or nbytes <= parts.pool.sizes.slot_bytes


def fits_staging(parts: Parts, nbytes: int) -> bool:
    """Whether a slab fits the staging buffers; where there are none yet, they are made to fit."""
    return not parts.pool.staging or nbytes <= parts.pool.sizes.staging_bytes


def staging_bytes(parts: Parts) -> int:
    """The size of staging buffers: as they are (units know them by now), or to serve any slot."""
    sizes = parts.pool.sizes
    return sizes.staging_bytes if parts.pool.staging else sizes.slot_bytes
