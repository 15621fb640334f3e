"""Byte counts of a model for the planner, in file and RAM; which arrays may lie at 8 bytes."""

from collections.abc import Iterable
from dataclasses import replace

from ...adapters.adapted import NO_LORAS, InMemory
from ...adapters.live import LiveModel, LiveUnit
from ...adapters.stored import StoredModel, extent_of
from ...layout.dtypes import HALVES
from ...layout.slab import align_up, pack
from ...layout.values import Leaf, TensorSpec
from ...plan import Facts, UnitFacts
from ...store.file_slab import LEAST_ALIGNMENT, Extent, file_slab
from ...store.host_memory import free_host_bytes
from ...stream.device import Device

# The CPU's kernels give equal bits for 16-bit floats at any offset, and so does a cast.
LENIENT_ALIGNMENT = 8


def leaves_of(specs: Iterable[TensorSpec]) -> tuple[Leaf, ...]:
    """All leaves of some tensors, in order."""
    return tuple(leaf for spec in specs for leaf in spec.leaves)


def facts_of_module(live: LiveModel, device: Device, loras: InMemory = NO_LORAS) -> Facts:
    """Facts of a live module whose weights are in host memory, with the factors of its LoRAs."""
    units = tuple(_with_loras(unit, loras) for unit in live.units)
    return _facts(live, device, units, from_checkpoint=False)


def facts_of_checkpoint(model: StoredModel, device: Device) -> Facts:
    """Facts of a skeleton whose weights are in a checkpoint."""
    units = tuple(_in_file(model, unit, on_host=device.on_host) for unit in model.live.units)
    return _facts(model.live, device, units, from_checkpoint=True)


def placed_by_host(facts: Facts, live: LiveModel, *, residents: bool) -> Facts:
    """The same where a host places what is not streamed: each tensor in memory of its own.

    `residents`: the units that stay are its to place, too.
    """

    def alone(specs: Iterable[TensorSpec]) -> int:
        return sum(align_up(leaf.nbytes, facts.granularity) for leaf in leaves_of(specs))

    units = facts.units
    if residents:
        pairs = zip(facts.units, live.units, strict=True)
        units = tuple(replace(f, resident_bytes=alone(u.layout.tensors)) for f, u in pairs)
    in_place = facts.on_host and not facts.from_checkpoint
    tables = (table.spec for table in live.tables) if in_place else ()
    return replace(facts, units=units, rest_bytes=alone((*live.layout.rest, *tables)))


def _in_file(model: StoredModel, unit: LiveUnit, *, on_host: bool) -> UnitFacts:
    """A unit that is read from its file, and may rest in RAM as it is stored there."""
    decoding = model.decoding(unit)
    facts = replace(
        _in_memory(unit),
        disk_slab_bytes=file_slab(extents_of(model, unit, on_host=on_host)).slab.nbytes,
        decode_bytes=decoding.buffer_bytes,
        decode_moved_bytes=decoding.cost.moved_bytes,
    )
    if not decoding.rests_stored:
        return facts
    return replace(
        facts,
        ram_slab_bytes=pack(decoding.stored).nbytes,
        ram_decode_bytes=decoding.buffer_bytes,
    )


def _in_memory(unit: LiveUnit) -> UnitFacts:
    """A unit's slab, which is the same on the device and in host memory."""
    nbytes = pack(unit.layout.leaves).nbytes
    return UnitFacts(unit.layout.name, unit.layout.kind, nbytes, nbytes)


def _with_loras(unit: LiveUnit, loras: InMemory) -> UnitFacts:
    facts, decoding = _in_memory(unit), loras.decoding(unit)
    if decoding is None:
        return facts
    return replace(
        facts,
        ram_slab_bytes=pack(decoding.stored).nbytes,
        ram_decode_bytes=decoding.buffer_bytes,
        decode_moved_bytes=decoding.cost.moved_bytes,
    )


def extents_of(model: StoredModel, unit: LiveUnit, *, on_host: bool) -> tuple[Extent, ...]:
    """Where the stored arrays of the unit lie in the checkpoint, in the order of its decoding.

    On the host, 16-bit floats and what is decoded stay at 8-byte offsets: moving them up would
    take cores from the forward.
    """
    extents = []
    for form in (form for tensor in unit.tensors for form in model.forms(tensor)):
        for part in form.parts:
            lenient = on_host and (bool(form.form.steps) or part.dtype in HALVES)
            alignment = LENIENT_ALIGNMENT if lenient else LEAST_ALIGNMENT
            extents.append(replace(extent_of(part), alignment=alignment))
    return tuple(extents)


def _facts(
    live: LiveModel, device: Device, units: tuple[UnitFacts, ...], *, from_checkpoint: bool
) -> Facts:
    tables = leaves_of(table.spec for table in live.tables)
    in_place = device.on_host and not from_checkpoint
    rest = leaves_of(live.layout.rest)
    return Facts(
        label=live.layout.label,
        device=str(device.torch_device),
        on_host=device.on_host,
        units=units,
        rest_bytes=pack((*rest, *tables) if in_place else rest).nbytes,
        device_free_bytes=device.free_bytes(),
        host_free_bytes=free_host_bytes(),
        granularity=device.granularity,
        from_checkpoint=from_checkpoint,
        table_bytes=0 if in_place else sum(leaf.nbytes for leaf in tables),
    )
