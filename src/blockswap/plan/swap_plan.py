"""The plan as a value: each block's tier, slots, bytes, predicted times, and the R/m/d map."""

from dataclasses import dataclass
from typing import Literal

Tier = Literal["resident", "ram", "disk"]


@dataclass(frozen=True, slots=True)
class Timing:
    """A forward in the steady state, in seconds. Transfers: all copies, or all reads.

    `exposed_seconds` is what compute waited for bytes, `hidden_seconds` what of the slower of the
    two transfers ran under compute.
    """

    step_seconds: float
    compute_seconds: float
    copy_seconds: float
    read_seconds: float
    exposed_seconds: float
    rest_seconds: float = 0.0  # of the compute, what is outside the units
    decode_seconds: float = 0.0  # of the compute, what decodes streamed units

    @property
    def block_seconds(self) -> float:
        """What a report measures of a forward: compute of the units, and waiting for them."""
        return self.compute_seconds - self.rest_seconds + self.exposed_seconds

    @property
    def bound_seconds(self) -> float:
        """What no schedule can beat."""
        return max(self.compute_seconds, self.copy_seconds, self.read_seconds)

    @property
    def hidden_seconds(self) -> float:
        return max(0.0, max(self.copy_seconds, self.read_seconds) - self.exposed_seconds)

    @property
    def binding(self) -> str:
        """What a faster forward would need most: "compute", "link" or "disk"."""
        if self.bound_seconds <= self.compute_seconds:
            return "compute"
        return "link" if self.bound_seconds <= self.copy_seconds else "disk"


@dataclass(frozen=True, slots=True)
class PlannedUnit:
    """One unit in execution order.

    `slab_bytes` is what its slab takes where it rests (device slab when resident, host or file
    slab when streamed), before the allocator rounds it.
    """

    name: str
    tier: Tier
    slab_bytes: int


@dataclass(frozen=True, slots=True)
class SwapPlan:
    """The decision, made once and then executed without policy. All sizes in bytes.

    `device_bytes` = rest + residents + slots (+ decode buffer), each rounded up as the device
    allocator does; it is exact for weights and slots. `reserve_bytes` is left to activations.
    `sentences` explain the decision to a person. Where the workload was known when the plan was
    made, `activation_bytes` is the peak it adds, and `timing` (where speeds were known too) a
    forward in the steady state. `chunk_tokens`: blocks run in pieces of at most so many tokens;
    None: whole, unless memory runs out; 0: always whole.
    """

    device: str
    units: tuple[PlannedUnit, ...]
    slots: int
    slot_bytes: int
    prefetch: int
    rest_bytes: int
    decode_bytes: int
    device_bytes: int
    reserve_bytes: int
    pinned_bytes: int
    staging_buffers: int
    staging_bytes: int
    copied_bytes_per_forward: int  # host to device
    read_bytes_per_forward: int  # from the checkpoint file
    sentences: tuple[str, ...]
    activation_bytes: int | None = None
    timing: Timing | None = None
    chunk_tokens: int | None = None

    @property
    def peak_bytes(self) -> int | None:
        """Predicted peak of the device in a forward; None where the workload was not known."""
        known = self.activation_bytes
        return None if known is None else self.device_bytes + known

    @property
    def residents(self) -> tuple[str, ...]:
        return tuple(unit.name for unit in self.units if unit.tier == "resident")

    @property
    def streamed(self) -> tuple[str, ...]:
        return tuple(unit.name for unit in self.units if unit.tier != "resident")

    @property
    def resident_bytes(self) -> int:
        """Bytes of the slabs that stay, as asked for: the allocator may round each up."""
        return sum(unit.slab_bytes for unit in self.units if unit.tier == "resident")

    @property
    def streamed_bytes(self) -> int:
        """Bytes of the slabs that visit the device in a forward."""
        return sum(unit.slab_bytes for unit in self.units if unit.tier != "resident")

    def tier_of(self, name: str) -> Tier:
        """Where the unit's bytes rest between forwards. Raises KeyError for an unknown name."""
        for unit in self.units:
            if unit.name == name:
                return unit.tier
        raise KeyError(name)

    def block_map(self) -> str:
        """One letter a unit in execution order: R resident, m streamed from RAM, d from disk."""
        return "".join({"resident": "R", "ram": "m", "disk": "d"}[unit.tier] for unit in self.units)

    def map_words(self) -> str:
        """`block_map` for people: where there are others than blocks, each run is named.

        "text_embedder R, blocks RddRdddR"; "RddRdddR" for blocks alone.
        """
        runs: list[tuple[str, str]] = []
        for unit, letter in zip(self.units, self.block_map(), strict=True):
            name = _list_of(unit.name)
            if runs and runs[-1][0] == name:
                runs[-1] = name, runs[-1][1] + letter
            else:
                runs.append((name, letter))
        if {name for name, _ in runs} <= {"blocks"}:
            return self.block_map()
        return ", ".join(f"{name} {letters}" for name, letters in runs)


def _list_of(name: str) -> str:
    """The list of blocks that a unit is in; its own last name where it is in none."""
    prefix, _, last = name.rpartition(".")
    return prefix if prefix and last.isdecimal() else last
