"""Peaks of device memory that several look for at once: a device has one peak, for all.

A swap that measures its forwards resets the peak at each. Whoever looks for the peak of a longer
time would see that of the last forward alone.
"""

import weakref
from typing import Protocol

import torch


class _Device(Protocol):
    torch_device: torch.device

    def reset_peak(self) -> None: ...

    def peak_bytes(self) -> int | None: ...


_watches: "weakref.WeakSet[PeakWatch]" = weakref.WeakSet()


class PeakWatch:
    """The most that was allocated on a device since this was made, whoever resets the peak."""

    def __init__(self, device: _Device) -> None:
        self._device = device
        device.reset_peak()
        self._noted = 0
        _watches.add(self)

    def note(self, where: torch.device, peak: int) -> None:
        if where == self._device.torch_device:
            self._noted = max(self._noted, peak)

    def peak_bytes(self) -> int | None:
        """None where the device tells no peak."""
        now = self._device.peak_bytes()
        return None if now is None else max(self._noted, now)


def note_peak(where: torch.device, peak: int) -> None:
    """Before the peak of a device is reset: what it was."""
    for watch in tuple(_watches):
        watch.note(where, peak)
