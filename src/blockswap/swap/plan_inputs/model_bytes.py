"""Byte counts of a model for the planner; which tensors are decoded, which may lie at 8 bytes."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...adapters.live import LiveModel, LiveUnit
from ...adapters.stored import StoredModel, extent_of
from ...layout.slab import pack
from ...layout.values import Leaf, TensorSpec
from ...plan import Facts, UnitFacts
from ...store.file_slab import LEAST_ALIGNMENT, Extent, file_slab
from ...store.host_memory import free_host_bytes
from ...stream.device import Device

# The CPU's kernels give equal bits for 16-bit floats at any offset, and so does a cast.
LENIENT_ALIGNMENT = 8
_HALVES = ("bfloat16", "float16")


def leaves_of(specs: Iterable[TensorSpec]) -> tuple[Leaf, ...]:
    """All leaves of some tensors, in order."""
    return tuple(leaf for spec in specs for leaf in spec.leaves)


def facts_of_module(live: LiveModel, device: Device) -> Facts:
    """Facts of a live module whose weights are in host memory."""
    units = tuple(map(_in_memory, live.units))
    return _facts(live, device, units, from_checkpoint=False)


def facts_of_checkpoint(model: StoredModel, device: Device) -> Facts:
    """Facts of a skeleton whose weights are in a checkpoint."""
    units = tuple(
        replace(
            _in_memory(unit),
            disk_slab_bytes=file_slab(extents_of(model, unit, on_host=device.on_host)).slab.nbytes,
            decode_bytes=pack(decoded_leaves(model, unit).leaves).nbytes,
        )
        for unit in model.live.units
    )
    return _facts(model.live, device, units, from_checkpoint=True)


def _in_memory(unit: LiveUnit) -> UnitFacts:
    """A unit's slab, which is the same on the device and in host memory."""
    nbytes = pack(unit.layout.leaves).nbytes
    return UnitFacts(unit.layout.name, unit.layout.kind, nbytes, nbytes)


def extents_of(model: StoredModel, unit: LiveUnit, *, on_host: bool) -> tuple[Extent, ...]:
    """Where the bytes of each leaf of the unit lie in the checkpoint, in leaf order.

    On the host, leaves of 16-bit floats and those that are cast stay at 8-byte offsets: moving
    them up would take cores from the forward.
    """
    extents = []
    for tensor in unit.tensors:
        for stored, leaf in zip(model.stored_leaves(tensor), tensor.spec.leaves, strict=True):
            cast = stored.dtype != leaf.dtype
            lenient = on_host and (cast or stored.dtype in _HALVES)
            alignment = LENIENT_ALIGNMENT if lenient else LEAST_ALIGNMENT
            extents.append(replace(extent_of(stored), alignment=alignment))
    return tuple(extents)


@dataclass(frozen=True, slots=True)
class DecodedLeaves:
    """The leaves of a unit whose stored dtype is not the one they compute with."""

    numbers: tuple[int, ...]  # positions among the unit's leaves
    leaves: tuple[Leaf, ...]  # in compute form


def decoded_leaves(model: StoredModel, unit: LiveUnit) -> DecodedLeaves:
    """Which leaves of the unit need decoding when they come from the file."""
    numbers, leaves = [], []
    forms = [stored for tensor in unit.tensors for stored in model.stored_leaves(tensor)]
    for number, (stored, leaf) in enumerate(zip(forms, unit.layout.leaves, strict=True)):
        if stored.dtype != leaf.dtype:
            numbers.append(number)
            leaves.append(leaf)
    return DecodedLeaves(tuple(numbers), tuple(leaves))


def _facts(
    live: LiveModel, device: Device, units: tuple[UnitFacts, ...], *, from_checkpoint: bool
) -> Facts:
    return Facts(
        label=live.layout.label,
        device=str(device.torch_device),
        on_host=device.on_host,
        units=units,
        rest_bytes=pack(leaves_of(live.layout.rest)).nbytes,
        device_free_bytes=device.free_bytes(),
        host_free_bytes=free_host_bytes(),
        granularity=device.granularity,
        from_checkpoint=from_checkpoint,
    )
