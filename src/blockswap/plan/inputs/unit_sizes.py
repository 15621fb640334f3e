"""Byte counts of every unit and of free memory: all that the planner knows of model and machine."""

from dataclasses import dataclass

from ...errors import PlanError
from ...layout.values import UnitKind

# Through which ranks on the CPU give each other their parts, in memory that all of them see.
EXCHANGED_SLABS = 2


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """Sizes in bytes of one unit in each form it can take.

    `resident_bytes`   its slab when it stays on the compute device
    `ram_slab_bytes`   its slab in host memory: decoded already, or as stored where that is smaller
    `disk_slab_bytes`  what is read from the checkpoint for it, None where no file is behind it
    `decode_bytes`     the device buffer that its bytes from the file are decoded into, 0 where the
                       file holds them as they are computed with
    `ram_decode_bytes` the same for its bytes in host memory, 0 where those are decoded already
    `decode_moved_bytes` what one decoding reads and writes in the device's own memory
    """

    name: str
    kind: UnitKind
    resident_bytes: int
    ram_slab_bytes: int
    disk_slab_bytes: int | None = None
    decode_bytes: int = 0
    ram_decode_bytes: int = 0
    decode_moved_bytes: int = 0

    def loaded(self) -> "UnitFacts":
        """The same unit of a model that lies in host memory as it computes."""
        return UnitFacts(self.name, self.kind, self.resident_bytes, self.resident_bytes)


@dataclass(frozen=True, slots=True)
class Facts:
    """A model and the machine it meets; units in execution order, sizes in bytes.

    `on_host`: the compute device is the CPU. `granularity`: the device allocator rounds each
    allocation up to a multiple of it. Free memory is counted before the model is on the device,
    None where it is not known. `from_checkpoint`: the weights are in a file, not in host memory.
    `granted_bytes`: what an application that shares the device out allows weights and slots, for a
    plan that was left open; None where the free memory decides. `notes`: sentences on the model
    that its plan repeats. `table_bytes`: lookup tables, of which a forward reads the rows that
    it asks for. `ranks` of this host may bring each a part of a unit.
    Raises PlanError if the file has no bytes for a unit although it is to be read from there.
    """

    label: str
    device: str
    on_host: bool
    units: tuple[UnitFacts, ...]
    rest_bytes: int
    device_free_bytes: int | None
    host_free_bytes: int | None
    granularity: int
    from_checkpoint: bool
    granted_bytes: int | None = None
    table_bytes: int = 0
    notes: tuple[str, ...] = ()
    ranks: int = 1

    def __post_init__(self) -> None:
        if not self.from_checkpoint:
            return
        for unit in self.units:
            if unit.disk_slab_bytes is None:
                raise PlanError(
                    f"{self.label} is to be read from its checkpoint, which has no bytes for "
                    f"{unit.name}: load the model first and swap it from memory"
                )

    @property
    def ranks_in_memory(self) -> int:
        """How many have slots in the host memory in which the blocks compute; 1 on accelerators."""
        return self.ranks if self.on_host else 1

    @property
    def free_bytes(self) -> int | None:
        """Free memory where the blocks compute: the host's when that is the CPU."""
        if self.on_host and self.device_free_bytes is None:
            return self.host_free_bytes
        return self.device_free_bytes
