"""Strengths of merged LoRAs changed while the model is swapped: what is made anew, what is refused.

A streamed block reads its strengths at its next visit. What stays on the device was merged once and
is made anew from its weights on the host or in the file, in the memory that it has.
"""

from collections.abc import Callable, Mapping, Sequence

import torch

from ...adapters.live import LiveModel, LiveTensor
from ...lora.file import LoraFile, is_file_of
from ...lora.request import Lora
from ...stream.device import Device
from ...stream.units.resident import Resident
from ...stream.units.unit import Unit

# The leaves of some tensors, merged with the strengths of now.
Merging = Callable[[str, Sequence[LiveTensor]], list[torch.Tensor]]


class MergedLoras:
    """The LoRAs that a swap was opened with."""

    def __init__(
        self,
        files: Sequence[LoraFile],
        live: LiveModel,
        device: Device,
        *,
        merged: Merging,
        changes: Callable[[LiveTensor], bool],
        writes: bool = True,
    ) -> None:
        """`changes` says whether a tensor is changed by them. `writes`: what stays is made anew by
        this process, and not by another rank that has the same memory."""
        self._writes = writes
        self.torn = False  # what stays is partly of other strengths: it could not be made anew
        self._files = tuple(files)
        self._live = live
        self._device = device
        self._merged = merged
        self._changes = changes
        self._residents: Mapping[str, Resident] = {}

    def stay(self, residents: Mapping[str, Resident]) -> None:
        """Names the slabs of units that were resident from the start."""
        self._residents = residents

    def are(self, loras: Sequence[Lora]) -> bool:
        """Whether they are the files that were opened, in their order."""
        return len(loras) == len(self._files) and all(map(is_file_of, self._files, loras))

    @property
    def strengths(self) -> list[float]:
        """At which they are added now."""
        return [file.strength.value for file in self._files]

    def set(self, strengths: Sequence[float], units: Sequence[Unit]) -> str:
        """Adds the files that were opened at other strengths, between forwards; what is said of it.

        `units`: all of the model, where they are now.
        """
        files, before = self._files, self.strengths
        if before != list(strengths):
            try:
                self._add_at(strengths, units)
            except BaseException:
                self.torn = True
                self._add_at(before, units)
                self.torn = False
                raise
        words = ", ".join(f"{file.label} at {file.strength.value:g}" for file in files)
        return f"LoRAs are added at other strengths since: {words}"

    def _add_at(self, strengths: Sequence[float], units: Sequence[Unit]) -> None:
        self._device.synchronize()  # the forwards before still read what is written here
        for file, strength in zip(self._files, strengths, strict=True):
            file.strength.value = float(strength)
        if self._writes:
            self._make_anew(units)
        self._device.synchronize()

    def _make_anew(self, units: Sequence[Unit]) -> None:
        """What stays on the device."""
        for unit, live in zip(units, self._live.units, strict=True):
            resident = unit.resident or self._residents.get(unit.name)
            if unit.tier != "resident" or resident is None:
                continue
            if any(map(self._changes, live.tensors)):
                resident.load(self._merged(unit.name, live.tensors))
        rest = [tensor for tensor in self._live.rest if self._changes(tensor)]
        for tensor, leaf in zip(rest, self._merged("the rest of the model", rest), strict=True):
            place = tensor.places[0]
            # Past the version counter: the engine itself wrote this, and no code of others.
            place.table[place.name].data.copy_(leaf)
