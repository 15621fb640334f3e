"""Where probe figures are kept, and when they are too old (180 days) or unreadable to be used."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from ..cache import cache_folder, read_json, write_json_atomically
from ..errors import ArgsError
from ..report.words import count_of
from .hardware import Hardware
from .values import DevicePart, DiskPart, device_part_from, disk_part_from

# Raised whenever a figure comes to mean something else.
FORMAT = 1
# Drives wear, cards move between slots and power limits change: half a year is long enough.
OLDEST = timedelta(days=180)


@dataclass(slots=True)
class Kept:
    """What is known of this hardware. `sentence` says why figures that are kept are not used."""

    device: DevicePart | None = None
    disks: dict[str, DiskPart] = field(default_factory=dict)
    sentence: str | None = None


def kept_path(hardware: Hardware) -> Path:
    """The file for this hardware."""
    digest = hashlib.sha256(json.dumps(hardware, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"probe-{digest}.json"


def read_kept(hardware: Hardware, *, now: datetime) -> Kept:
    """What is kept of this hardware and still good; what is not is told in a sentence."""
    path = kept_path(hardware)
    if not os.path.lexists(path):
        return Kept()
    value = read_json(path)
    try:
        if value["format"] != FORMAT or value["hardware"] != hardware:
            return Kept(sentence=f"the figures kept in {path} are of another version: probed anew")
        device = device_part_from(value["device"])
        disks = {key: disk_part_from(disk) for key, disk in value["disks"].items()}
        old = [key for key, disk in disks.items() if _age(disk.measured_at, now) > OLDEST]
        age = _age(device.measured_at, now)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ArgsError):
        return Kept(sentence=f"the figures kept in {path} cannot be read: probed anew")
    if age > OLDEST:
        return Kept(sentence=f"the figures kept in {path} are {age.days} days old: probed anew")
    good = {key: disk for key, disk in disks.items() if key not in old}
    return Kept(device, good, _old_disks(path, len(old)) if old else None)


def write_kept(hardware: Hardware, device: DevicePart, disks: Mapping[str, DiskPart]) -> None:
    """Keeps the figures. Raises OutputError where the cache folder cannot be written."""
    value: dict[str, Any] = {
        "format": FORMAT,
        "hardware": hardware,
        "device": device.to_dict(),
        "disks": {key: disk.to_dict() for key, disk in disks.items()},
    }
    write_json_atomically(kept_path(hardware), value)


def _old_disks(path: Path, count: int) -> str:
    disks = count_of(count, "disk")
    return f"figures of {disks} kept in {path} are over {OLDEST.days} days old: no longer used"


def _age(measured_at: str, now: datetime) -> timedelta:
    moment = datetime.fromisoformat(measured_at)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return abs(now - moment)  # a clock that was set back makes no figure younger
