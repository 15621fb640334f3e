"""`probe`: when kept figures serve or are measured anew, when they are noisy, the `Machine`."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..errors import OutputError
from ..plan.inputs.machine import Machine
from ..report.words import count_of
from ..store.host_memory import total_host_bytes
from ..stream.device import Device, best_device, open_device
from .compute import compute_figures, memory_figure
from .disk import measure_disk
from .hardware import device_name, disk_of, hardware_of
from .kept import kept_path, read_kept, write_kept
from .link import link_figures
from .values import DevicePart, DiskPart, Figure, Limits

# Rounds that differ by more are no longer the device's own variation.
NOISY = 1.3


@dataclass(frozen=True, slots=True)
class Probe:
    """What a machine can do and how that was found.

    `disk` is None where no folder was asked about. `sentences` say what was not measured and
    why, and what became of figures kept before; `measured` whether anything was, this time;
    `path` is the file that keeps the figures, None where none could be written.
    """

    machine: Machine
    device: DevicePart
    disk: DiskPart | None
    sentences: tuple[str, ...]
    measured: bool
    path: str | None

    def to_dict(self) -> dict[str, Any]:
        """Dictionaries, numbers and texts, ready for `json.dumps`."""
        return {
            "machine": self.machine.to_dict(),
            "device": self.device.to_dict(),
            "disk": None if self.disk is None else self.disk.to_dict(),
            "sentences": list(self.sentences),
            "measured": self.measured,
            "path": self.path,
        }


def probe(
    device: str | torch.device | None = None,
    *,
    place: Path | None = None,
    fresh: bool = False,
    limits: Limits | None = None,
) -> Probe:
    """What `device` (by default the accelerator, or else the CPU) and the disk at `place` can do.

    Figures kept from before are used unless `fresh`; what is missing is measured, which takes
    about ten seconds, and kept. `place` is a folder, where a scratch file is then written, or a
    file on the disk in question; where nothing is there, a sentence says so. Raises DeviceError
    where the device is not there.
    """
    opened = open_device(best_device() if device is None else device)
    limits, now = limits or Limits(), datetime.now(timezone.utc)
    hardware = hardware_of(opened)
    kept = read_kept(hardware, now=now)
    sentences = [kept.sentence] if kept.sentence else []
    part = None if fresh else kept.device
    measured = part is None
    if part is None:
        part = _measure_device(opened, limits, now)
    disk, key = None, _disk_key(place)
    if place is not None:
        disk = None if fresh or key is None else kept.disks.get(key)
        if disk is None:
            disk, measured = _measure_disk(place, limits, now), True
            if key is not None and disk.figures is not None:
                kept.disks[key] = disk
    path: Path | None = kept_path(hardware)
    if measured:
        try:
            write_kept(hardware, part, kept.disks)
        except OutputError as error:
            sentences.append(f"the figures are not kept: {error}")
            path = None
    return _found(part, disk, sentences, measured=measured, path=path)


def cached_probe(
    device: str | torch.device | None = None, *, place: Path | None = None
) -> Probe | None:
    """What was measured before, or None: nothing is measured now.

    The disk is None in it where that of `place` was not measured. Raises DeviceError.
    """
    opened = open_device(best_device() if device is None else device)
    hardware = hardware_of(opened)
    kept = read_kept(hardware, now=datetime.now(timezone.utc))
    if kept.device is None:
        return None
    key = _disk_key(place)
    disk = None if key is None else kept.disks.get(key)
    sentences = [kept.sentence] if kept.sentence else []
    return _found(kept.device, disk, sentences, measured=False, path=kept_path(hardware))


def _found(
    part: DevicePart,
    disk: DiskPart | None,
    sentences: list[str],
    *,
    measured: bool,
    path: Path | None,
) -> Probe:
    machine = replace(part.machine, disk=None if disk is None else disk.figures)
    told = [*sentences, *part.sentences, *(disk.sentences if disk else ())]
    return Probe(machine, part, disk, tuple(told), measured, None if path is None else str(path))


def _disk_key(place: Path | None) -> str | None:
    try:
        return None if place is None else disk_of(place)
    except OSError:  # measuring it will say what is wrong with it
        return None


def _measure_device(device: Device, limits: Limits, now: datetime) -> DevicePart:
    figures, sentences = _sorted(
        (
            *compute_figures(device, limits),
            memory_figure(device, limits),
            *link_figures(device, limits),
        )
    )
    if (noisy := _noise(figures)) is not None:
        sentences = (*sentences, noisy)
    rates = {figure.name: figure.per_second for figure in figures}
    name = device_name(device)
    threads = f", {count_of(torch.get_num_threads(), 'thread')}" if device.on_host else ""
    machine = Machine(
        name=name,
        on_host=device.on_host,
        flops=_by_dtype(rates, "matmul "),
        attention_flops=_by_dtype(rates, "attention "),
        device_bytes=device.total_bytes(),
        host_bytes=total_host_bytes(),
        memory_rate=rates.get("device memory"),
        pinned_link=rates.get("link to device, pinned"),
        pageable_link=rates.get("link to device, pageable"),
        source=f"measured on {now:%Y-%m-%d} by a probe of {name} with torch {torch.__version__}"
        f"{threads}",
    )
    return DevicePart(machine, figures, sentences, now.isoformat(timespec="seconds"))


def _measure_disk(place: Path, limits: Limits, now: datetime) -> DiskPart:
    found = measure_disk(place, limits)
    moment = now.isoformat(timespec="seconds")
    return DiskPart(str(place), found.figures, found.trials, found.sentences, moment)


def _sorted(found: Iterable[Figure | str]) -> tuple[tuple[Figure, ...], tuple[str, ...]]:
    """Figures, and the sentences about those that could not be had."""
    together = tuple(found)
    figures = tuple(each for each in together if isinstance(each, Figure))
    return figures, tuple(each for each in together if isinstance(each, str))


def _noise(figures: tuple[Figure, ...]) -> str | None:
    """What to say when rounds of one measurement differ: the figures are then too low."""
    worst = max(figures, key=lambda figure: figure.spread, default=None)
    if worst is None or worst.spread <= NOISY:
        return None
    return (
        f"rounds of {worst.name} differed by a factor of {worst.spread:.1f}: other programs were "
        "at work, probe again when they are done"
    )


def _by_dtype(rates: dict[str, float], prefix: str) -> tuple[tuple[str, float], ...]:
    found = ((name.removeprefix(prefix), rate) for name, rate in rates.items()
             if name.startswith(prefix))  # fmt: skip
    return tuple(found)
