"""Steps of opening a checkpoint: residents and RAM tier read, disk units found, saving refused."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from ...adapters.live import LiveTensor, LiveUnit
from ...adapters.stored import StoredModel
from ...decode.packed_rows import bytes_of_rows, decode_rows
from ...layout.checkpoint import Checkpoint
from ...layout.shares import Span
from ...lora.file import LoraFile
from ...plan import Facts
from ...ranks.group import Ranks
from ...ranks.host_contents import HostsWatch, refuse_other_contents
from ...ranks.reading import ReadAlone, Reading
from ...store.disk import DiskStore, DiskUnit
from ...store.landing import Landing
from ...store.ram import RamStore
from ...store.readers import Piece
from ...store.tables import PackedTableInFile, TableInFile
from ...stream.model.hooks import Hooks
from ...stream.units.resident import Resident
from ...stream.units.transfer import DirectRead, StagedCopy, Transfer
from ...stream.units.unit import StreamedUnit
from ..assembly.device_slabs import hang_on_device, hang_unit, host_leaves
from ..assembly.parts import Parts
from ..assembly.ram_tier import fill_ram, ram_decoding, ram_layout
from ..assembly.streamed_units import decoded_values, idle_binding, ram_unit, unit_views
from ..assembly.table_rows import hang_tables
from ..assembly.unit_reader import Loader
from ..assembly.unpinned import ensure_staging
from ..plan_inputs.model_bytes import extents_of
from ..running.departures import FileForms
from ..running.handle import Swap
from ..running.merged_loras import MergedLoras
from .from_memory import UNLIMITED


class Opening:
    """The steps of opening a checkpoint, in order."""

    def __init__(
        self,
        parts: Parts,
        model: StoredModel,
        checkpoint: Checkpoint,
        reading: Reading | None = None,
    ) -> None:
        """`reading`: with which ranks the file is read."""
        self._parts = parts
        self._reading = reading or ReadAlone(parts.device)
        self._model = model
        self._source = ", ".join(str(path) for path in checkpoint.paths)
        self._headers = checkpoint.headers
        self._loader = Loader(model, self._headers, parts.pool.readers, parts.device, self._reading)
        self._store: DiskStore | None = None
        self._on_file: dict[str, int] = {}  # positions in the store
        self._watch: HostsWatch | None = None

    def load_rest(self) -> None:
        """Reads what lies outside the units, and puts it and all computed buffers in place."""
        parts, reading = self._parts, self._reading
        stored = [t for t in parts.live.rest if self._model.forms(t)]
        read = iter(self._loader.decoded("the rest of the model", stored))
        leaves = {id(tensor): [next(read) for _ in tensor.spec.leaves] for tensor in stored}
        # One slab for all, as the plan counts it; on the host what was computed lies there already,
        # and buffers, which a forward may write to, are each process's own.
        on_host = parts.device.on_host
        placed = stored if on_host else parts.live.rest
        own = [t for t in placed if on_host and not t.places[0].is_parameter]
        weights = [t for t in placed if not on_host or t.places[0].is_parameter]
        for tensors, allocate, copies in (
            (weights, reading.weights, reading.places),
            (own, parts.device.allocate, True),
        ):
            sources = [s for t in tensors for s in leaves.get(id(t)) or host_leaves([t])]
            hang_on_device(parts.undo, tensors, sources, allocate, copies=copies)
        tables = parts.live.tables
        hang_tables(parts, tables, [self._rows(table) for table in tables])

    def load_residents(self) -> dict[str, Resident]:
        parts, residents = self._parts, {}
        for unit in self._units("resident"):
            name = unit.layout.name
            leaves = self._loader.decoded(name, unit.tensors)
            residents[name] = hang_unit(
                parts.undo,
                unit.tensors,
                leaves,
                parts.device,
                self._reading.weights,
                copies=self._reading.places,
            )
        return residents

    def compare_hosts(self, ranks: Ranks) -> None:
        """What was read at opening, with what the other hosts of `ranks` have read."""
        if self._reading.across:
            refuse_other_contents(ranks, self._loader.sums if self._reading.fills else None)

    def watch_hosts(self, ranks: Ranks, hooks: Hooks, spoil: Callable[[str], None]) -> None:
        """What forwards read is compared, too; `spoil` makes the model refuse from then on."""
        if self._reading.across:
            sums = self._store.sums if self._store is not None else dict[str, int]
            self._watch = HostsWatch(ranks, sums, spoil)
            hooks.after_forward(self._watch.look)

    def forms(self, facts: Facts, ram_budget: int) -> FileForms:
        """How residents come to be streamed, should the plan be corrected."""
        return FileForms(
            self._parts,
            facts,
            ram_budget=ram_budget,
            model=self._model,
            loader=self._loader,
            disk_unit=self._disk_unit,
        )

    def ram_units(self) -> dict[str, StreamedUnit]:
        """Reads the RAM tier into pinned memory, in the smaller of stored and compute form."""
        parts, model, units = self._parts, self._model, self._units("ram")
        layouts = [ram_layout(model, unit) for unit in units]
        reading = self._reading
        store = RamStore(layouts, lender=reading, pin_budget=UNLIMITED, unpinned=reading.pageable)
        parts.undo.callback(reading.let_go)
        bindings = []
        for index, unit in enumerate(units):
            parts.undo.callback(store.give_back, index)
            binding = fill_ram(store, index, model, unit, self._loader)
            parts.undo.callback(binding.rest_on, [t.tensor for t in unit.tensors])
            binding.unbind()
            bindings.append(binding)
        ensure_staging(
            parts, store, max((store.slab_bytes(i) for i in range(len(units))), default=0)
        )
        streamed = {}
        for index, unit in enumerate(units):
            decoding = ram_decoding(model, unit)
            made = ram_unit(parts, store, index, unit, bindings[index], decoding)
            streamed[unit.layout.name] = made
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
        parts, on_host = self._parts, self._parts.device.on_host
        found = [
            DiskUnit(u.layout.name, extents_of(self._model, u, on_host=on_host)) for u in units
        ]
        brought = parts.brought
        if brought is not None and "disk" in brought.tiers:
            found += [DiskUnit.within(unit, brought.spans(unit.slab.slab.nbytes)) for unit in found]
        self._store = DiskStore(self._headers, found)
        parts.undo.callback(self._store.close)
        parts.pool.files.append(self._store)
        parts.undo.callback(parts.pool.files.remove, self._store)
        # Reads must have ended before their files are closed under them.
        parts.undo.callback(parts.pool.stop_reading)
        self._store.look()
        return {
            unit.layout.name: self._disk_unit(unit)
            for unit in units
            if unit.layout.name in streamed
        }

    def refuse_saving(self, hooks: Hooks, swap: Swap) -> None:
        """`state_dict()` would hand out tensors without data: say where the data is instead."""
        units = self._parts.live.units
        stored = {u.layout.name for u in units if ram_decoding(self._model, u) is not None}
        without = {u.layout.name: u.module for u in units
                   if u.layout.name in stored or u.layout.name in self._on_file}  # fmt: skip
        tables = {t.places[0].label: t.places[0].module for t in self._parts.live.tables}
        hooks.refuse_state_dict(
            without | tables,
            lambda name: (
                name in tables
                or swap.reads_from_disk(name)
                or (name in stored and swap.streams(name))
            ),
            "the weights of this model are not in memory as they compute but streamed from "
            f"{self._source}: copy that file instead of saving the model",
        )

    def merged_loras(
        self, files: Sequence[LoraFile], residents: Mapping[str, Resident]
    ) -> MergedLoras | None:
        """The LoRAs behind the model, whose strengths may be changed.

        What stays is then read by each rank that places it, by itself.
        """
        if not files:
            return None
        parts = self._parts
        loader = Loader(self._model, self._headers, parts.pool.readers, parts.device)
        merged = MergedLoras(
            files,
            parts.live,
            parts.device,
            merged=loader.decoded,
            changes=lambda tensor: any(f.form.merges for f in self._model.forms(tensor)),
            writes=self._reading.places,
        )
        merged.stay(residents)
        return merged

    def reading_sentences(self, swap: Swap) -> tuple[str, ...]:
        """How the files are read, where it is not the best way, and how far they are compared."""
        compared = () if self._watch is None else (self._watch.sentence,)
        return (*compared, *self._ways_of_reading(swap))

    def _ways_of_reading(self, swap: Swap) -> tuple[str, ...]:
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

    def _rows(self, table: LiveTensor) -> TableInFile | PackedTableInFile:
        (found,) = self._model.forms(table)
        (part,), packed = found.parts, bytes_of_rows(found.form)
        rows: TableInFile | PackedTableInFile
        if packed is None:
            rows = TableInFile(self._headers[part.shard], part.dtype, part.shape, part.offset)
        else:
            stored = TableInFile(self._headers[part.shard], "uint8", packed, part.offset)
            rows = PackedTableInFile(stored, partial(decode_rows, found.form))
        self._parts.undo.callback(rows.close)
        return rows

    def _disk_unit(self, unit: LiveUnit) -> StreamedUnit:
        parts, store, index = self._parts, self._store, self._on_file[unit.layout.name]
        assert store is not None, "opened before any unit is read from it"
        decoding = self._model.decoding(unit)
        views = unit_views(decoding.stored, store.slab_offsets(index), parts.pool)
        values, decode = decoded_values(unit, views, decoding, parts.pool)
        transfer = self._disk_transfer(store, index, unit)
        binding = idle_binding(unit)
        return StreamedUnit(binding, transfer, tuple(map(binding.hanging, values)), decode)

    def _disk_transfer(self, store: DiskStore, index: int, unit: LiveUnit) -> Transfer:
        """How the unit's bytes get from the file to a slot, from other ranks' as well."""
        parts, brought = self._parts, self._parts.brought
        nbytes = store.slabs[index].slab.nbytes
        whole = self._read(store, index, ((0, nbytes),))
        if brought is None or "disk" not in brought.tiers or not brought.shares(nbytes).part_bytes:
            return whole
        own = self._read(store, index + len(self._on_file), brought.spans(nbytes))
        named = (unit.layout.name, parts.number_of(unit))
        return brought.transfer(own, whole, named, brought.shares(nbytes), parts.recorder, "disk")

    def _read(self, store: DiskStore, index: int, spans: Sequence[Span]) -> Transfer:
        parts, source = self._parts, DiskSource(store, index)
        if parts.device.on_host:
            return DirectRead(parts.pool, source, parts.recorder)
        return StagedCopy(parts.pool, source, spans, parts.recorder)


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
