"""Steps of opening a checkpoint: residents and RAM tier read, disk units found, saving refused."""

from collections.abc import Collection
from dataclasses import replace

import torch

from ...adapters.live import LiveTensor, LiveUnit
from ...adapters.stored import StoredModel
from ...layout.checkpoint import Checkpoint
from ...layout.values import contiguous_stride
from ...plan import Facts
from ...store.disk import DiskStore, DiskUnit
from ...store.landing import Landing
from ...store.ram import RamStore
from ...store.readers import Piece
from ...stream.model.hooks import Hooks
from ...stream.units.resident import Resident
from ...stream.units.transfer import DirectRead, StagedCopy, Transfer
from ...stream.units.unit import StreamedUnit
from ..assembly.device_slabs import hang_on_device, hang_unit, host_leaves
from ..assembly.parts import Parts
from ..assembly.streamed_units import (
    decoded_values,
    idle_binding,
    ram_unit,
    resting_on,
    unit_views,
)
from ..assembly.unit_reader import Loader
from ..assembly.unpinned import ensure_staging
from ..plan_inputs.model_bytes import decoded_leaves, extents_of
from ..running.departures import FileForms
from ..running.handle import Swap
from .from_memory import UNLIMITED


class Opening:
    """The steps of opening a checkpoint, in order."""

    def __init__(self, parts: Parts, model: StoredModel, checkpoint: Checkpoint) -> None:
        self._parts = parts
        self._model = model
        self._source = ", ".join(str(path) for path in checkpoint.paths)
        self._headers = checkpoint.headers
        self._loader = Loader(model, self._headers, parts.pool.readers)
        self._store: DiskStore | None = None
        self._on_file: dict[str, int] = {}  # positions in the store

    def load_rest(self) -> None:
        """Reads what lies outside the units, and puts it and all computed buffers in place."""
        rest = self._parts.live.rest
        stored = [t for t in rest if self._model.stored_leaves(t)]
        computed = [t for t in rest if not self._model.stored_leaves(t)]
        self._hang("the rest of the model", stored)
        if not self._parts.device.on_host:
            hang_on_device(self._parts.undo, computed, host_leaves(computed), self._parts.device)

    def load_residents(self) -> dict[str, Resident]:
        parts, residents = self._parts, {}
        for unit in self._units("resident"):
            name, leaves = unit.layout.name, self._read(unit)
            residents[name] = hang_unit(parts.undo, unit.tensors, leaves, parts.device)
        return residents

    def forms(self, facts: Facts, ram_budget: int) -> FileForms:
        """How residents come to be streamed, should the plan be corrected."""
        return FileForms(
            self._parts,
            facts,
            ram_budget=ram_budget,
            read=self._read,
            disk_unit=self._disk_unit,
        )

    def ram_units(self) -> dict[str, StreamedUnit]:
        """Reads the RAM tier into pinned memory, in compute form."""
        parts, units = self._parts, self._units("ram")
        store = RamStore([u.layout for u in units], lender=parts.device, pin_budget=UNLIMITED)
        bindings = []
        for index, unit in enumerate(units):
            parts.undo.callback(store.give_back, index)
            binding = resting_on(unit, store.fill(index, self._read(unit)))
            parts.undo.callback(binding.rest_on, [t.tensor for t in unit.tensors])
            binding.unbind()
            bindings.append(binding)
        ensure_staging(
            parts, store, max((store.slab_bytes(i) for i in range(len(units))), default=0)
        )
        streamed = {}
        for index, unit in enumerate(units):
            streamed[unit.layout.name] = ram_unit(parts, store, index, unit, bindings[index])
        return streamed

    def disk_units(self, movable: Collection[str]) -> dict[str, StreamedUnit]:
        """Opens the files for streaming. A unit on disk shows meta tensors between forwards.

        The store covers the `movable` units, too: they may come to be read from the file.
        """
        streamed = {unit.layout.name for unit in self._units("disk")}
        units = [u for u in self._parts.live.units if u.layout.name in streamed | set(movable)]
        if not units:
            return {}
        self._on_file = {unit.layout.name: index for index, unit in enumerate(units)}
        on_host = self._parts.device.on_host
        self._store = DiskStore(
            self._headers,
            [DiskUnit(u.layout.name, extents_of(self._model, u, on_host=on_host)) for u in units],
        )
        self._parts.undo.callback(self._store.close)
        self._parts.pool.files.append(self._store)
        self._parts.undo.callback(self._parts.pool.files.remove, self._store)
        # Reads must have ended before their files are closed under them.
        self._parts.undo.callback(self._parts.pool.stop_reading)
        self._store.look()
        return {
            unit.layout.name: self._disk_unit(unit)
            for unit in units
            if unit.layout.name in streamed
        }

    def refuse_saving(self, hooks: Hooks, swap: Swap) -> None:
        """`state_dict()` would hand out tensors without data: say where the data is instead."""
        units = self._parts.live.units
        hooks.refuse_state_dict(
            {u.layout.name: u.module for u in units if u.layout.name in self._on_file},
            swap.reads_from_disk,
            "the weights of this transformer are not in memory but streamed from "
            f"{self._source}: copy that file instead of saving the model",
        )

    def reading_sentences(self, swap: Swap) -> tuple[str, ...]:
        """How the files are read, where it is not the best way."""
        if self._store is None or not any(map(swap.reads_from_disk, self._on_file)):
            return ()
        modes = set(self._store.modes)
        if "plain" in modes:
            return ("blocks are read by plain reads: this platform has no os.preadv",)
        if "buffered" in modes:
            return ("blocks are read through the page cache: this file system has no O_DIRECT",)
        return ()

    def _units(self, tier: str) -> list[LiveUnit]:
        plan = self._parts.plan
        return [u for u in self._parts.live.units if plan.tier_of(u.layout.name) == tier]

    def _hang(self, name: str, tensors: tuple[LiveTensor, ...] | list[LiveTensor]) -> None:
        hang_on_device(
            self._parts.undo, tensors, self._loader.read(name, tensors), self._parts.device
        )

    def _read(self, unit: LiveUnit) -> list[torch.Tensor]:
        return self._loader.read(unit.layout.name, unit.tensors)

    def _disk_unit(self, unit: LiveUnit) -> StreamedUnit:
        parts, store, index = self._parts, self._store, self._on_file[unit.layout.name]
        assert store is not None, "opened before any unit is read from it"
        stored = [form for tensor in unit.tensors for form in self._model.stored_leaves(tensor)]
        leaves = [
            replace(leaf, dtype=form.dtype, stride=contiguous_stride(form.shape))
            for leaf, form in zip(unit.layout.leaves, stored, strict=True)
        ]
        views = unit_views(leaves, store.slab_offsets(index), parts.pool)
        numbers = decoded_leaves(self._model, unit).numbers
        values, decode = decoded_values(unit, views, numbers, parts.pool)
        source = DiskSource(store, index)
        transfer: Transfer
        if parts.device.on_host:
            transfer = DirectRead(parts.pool, source, parts.recorder)
        else:
            nbytes = store.slabs[index].slab.nbytes
            transfer = StagedCopy(parts.pool, source, nbytes, parts.recorder)
        binding = idle_binding(unit)
        return StreamedUnit(binding, transfer, tuple(map(binding.hanging, values)), decode)


class DiskSource:
    """One unit of a disk store as the engine's transfers see it."""

    def __init__(self, store: DiskStore, index: int) -> None:
        self._store = store
        self._index = index
        self.read_bytes = store.slabs[index].read_bytes

    def pieces(self, landing: Landing) -> list[Piece]:
        return self._store.pieces(self._index, landing)

    def settle(self, landing: Landing) -> int:
        return self._store.settle(self._index, landing)
