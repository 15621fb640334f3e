"""How blocks become resident or leave between forwards, which must stay, and the plan after it.

What rests where is asked of the engine each time and kept nowhere else, so an interrupt in the
middle of a change leaves the two agreeing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch

from ...adapters.live import LiveUnit
from ...ambient import undisturbed
from ...layout.slab import align_up
from ...plan import Tier
from ...plan.correction.promotion import Movable
from ...plan.correction.revised_plan import Buffers, replanned
from ...plan.timing.forward_time import timing_of
from ...stream.engine.streamer import Streamer
from ...stream.units.resident import Resident
from ...stream.units.unit import StreamedUnit
from ..assembly.device_slabs import make_resident
from ..assembly.parts import Parts
from .freedom import Freedom
from .handle import Swap


class Residency:
    """Promotes and demotes units between forwards, and keeps `Swap.plan` exact."""

    def __init__(
        self, parts: Parts, freedom: Freedom, streamed: Mapping[str, StreamedUnit]
    ) -> None:
        self.limits = freedom.limits
        self._parts = parts
        self._plan = parts.plan
        self._freedom = freedom
        self._sizes = {unit.name: unit for unit in freedom.facts.units}
        self._streamed = dict(streamed)
        self._tiers = {name: parts.plan.tier_of(name) for name in streamed}
        self._promoted: dict[str, Resident] = {}
        self._kept: set[str] = set()  # changed on the device by other code: they must stay
        self._units: list[Movable] = []
        self._swap: Swap | None = None
        self._streamer: Streamer | None = None

    def connect(self, swap: Swap, streamer: Streamer) -> None:
        """From here on changes are possible."""
        self._swap, self._streamer = swap, streamer

    @property
    def connected(self) -> bool:
        """Whether changes are possible: the swap is open."""
        return self._swap is not None

    def release_others(self) -> tuple[str, ...]:
        """Lets the residents of swaps go that share the pool with this one; what left."""
        return self._parts.sharing.release_others(self)

    def may_move(self, name: str) -> bool:
        """Whether the unit is one of the candidates."""
        return name in self._freedom.movable

    def units(self) -> Sequence[Movable]:
        """The units that may change, in execution order, as they are now."""
        if not self._units:
            tiers, granularity = self._engine.tiers(), self._freedom.facts.granularity
            self._units = [
                Movable(
                    name=name,
                    bytes=align_up(unit.resident_bytes, granularity),
                    resident=tiers[name] == "resident",
                    demotable=name not in self._kept and self._can_leave(name),
                )
                for name, unit in self._sizes.items()
                if name in self._freedom.movable
            ]
        return self._units

    @property
    def entry_bytes(self) -> int:
        """Device bytes of the buffers to be made before the first unit can leave; mostly 0."""
        slots, slot_bytes, decode_bytes = self._missing_buffers()
        granularity = self._freedom.facts.granularity
        return slots * align_up(slot_bytes, granularity) + align_up(decode_bytes, granularity)

    def promote(self, names: Sequence[str]) -> tuple[str, ...]:
        """Lets streamed units stay from their next visit on; those that memory was found for."""
        done: list[str] = []
        with undisturbed():
            self._engine.repair()
            for name in names:
                try:
                    resident = make_resident(self._unit(name).tensors, self._parts.device)
                except torch.OutOfMemoryError:
                    break
                self._promoted[name] = resident
                self._engine.promote(self._index(name), resident)
                done.append(name)
            self.refresh()
        return tuple(done)

    def demote(self, names: Sequence[str]) -> tuple[str, ...]:
        """Lets resident units be streamed from now on; those whose weights are as they were."""
        done: list[str] = []
        with undisturbed():
            self._engine.repair()
            if not self._make_buffers():
                return ()
            for name in names:
                resident = self._engine.units[self._index(name)].resident
                if resident is not None and not resident.untouched():
                    self._kept.add(name)
                    continue
                self._demote(name)
                done.append(name)
            self.refresh()
        return tuple(done)

    def refresh_if_changed(self) -> None:
        """Catches up with a change that an interrupt left half done."""
        assert self._swap is not None, "connected when the engine was started"
        plan, pool = self._swap.plan, self._parts.pool
        planned = {unit.name: unit.tier for unit in plan.units}
        if planned != self._engine.tiers() or plan.slots != len(pool.slots):
            self.refresh()

    def refresh(self) -> None:
        """Makes the plan say what is true."""
        assert self._swap is not None, "connected when the engine was started"
        pool, plan = self._parts.pool, self._parts.plan
        buffers = Buffers(
            slots=len(pool.slots),
            slot_bytes=pool.sizes.slot_bytes if pool.slots else 0,
            decode_bytes=pool.sizes.decode_bytes,
            staging_buffers=len(pool.staging),
            staging_bytes=pool.sizes.staging_bytes if pool.staging else 0,
        )
        in_ram = [name for name, tier in self._tiers.items() if tier == "ram"]
        held = sum(self._sizes[name].ram_slab_bytes for name in in_ram)
        if plan.pinned_bytes < sum(u.slab_bytes for u in plan.units if u.tier == "ram"):
            held = plan.pinned_bytes  # the RAM budget is spent, or pins nothing
        tiers = cast("dict[str, Tier]", self._engine.tiers())
        self._units = []
        changed = replanned(plan, self._freedom.facts, tiers, buffers, held)
        if self._freedom.speeds is not None:
            timing = timing_of(changed, self._freedom.speeds, on_host=False)
            changed = replace(changed, timing=timing)
        self._swap.replan(changed)

    def close(self) -> None:
        """Gives the model its own tensors back; the engine is drained already."""
        for resident in self._promoted.values():
            resident.take_down()
        self._promoted.clear()
        self._streamed.clear()
        self._freedom.forms.close()
        self._swap = self._streamer = None

    @property
    def _engine(self) -> Streamer:
        assert self._streamer is not None, "connected when the engine was started"
        return self._streamer

    def _index(self, name: str) -> int:
        return next(i for i, unit in enumerate(self._engine.units) if unit.name == name)

    def _unit(self, name: str) -> LiveUnit:
        return self._parts.live.units[self._index(name)]

    def _can_leave(self, name: str) -> bool:
        return name in self._streamed or self._freedom.forms.fits(name)

    def _demote(self, name: str) -> None:
        forms = self._freedom.forms
        if name not in self._streamed:
            streamed = forms.make(self._unit(name))
            self._tiers[name] = forms.tier(name)
            self._streamed[name] = streamed
        self._engine.demote(self._index(name), self._tiers[name], self._streamed[name])

    def _missing_buffers(self) -> tuple[int, int, int]:
        """Slots to make, bytes of each, and bytes of the decode buffer: all 0 where there are."""
        if self._parts.pool.slots:
            return 0, 0, 0
        forms, sizes = self._freedom.forms, self._sizes
        movable = [name for name in sizes if name in self._freedom.movable]
        disk = [sizes[name] for name in movable if forms.tier(name) == "disk"]
        ram = [sizes[name] for name in movable if forms.tier(name) != "disk"]
        slot_bytes = [unit.disk_slab_bytes or 0 for unit in disk]
        slot_bytes += [unit.ram_slab_bytes for unit in ram]
        decode_bytes = [unit.decode_bytes for unit in disk]
        decode_bytes += [unit.ram_decode_bytes for unit in ram]
        return self._freedom.slots, max(slot_bytes), max(decode_bytes)

    def _make_buffers(self) -> bool:
        """Makes slots where the plan began without; as many of those wanted as there is room."""
        slots, slot_bytes, decode_bytes = self._missing_buffers()
        for count in range(slots, 0, -1):
            try:
                self._parts.pool.add_slots(count, slot_bytes, decode_bytes)
            except torch.OutOfMemoryError:
                continue
            self._engine.deepen(count - 1)
            return True
        return not slots
