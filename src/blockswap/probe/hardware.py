"""What kept figures belong to: device, driver, torch, CPU and system; a disk's number and size."""

import os
import platform
import shutil
from pathlib import Path

import torch

from ..stream.device import Device

Hardware = dict[str, str]

_DRIVER = Path("/sys/module/nvidia/version")
_CPUINFO = Path("/proc/cpuinfo")


def hardware_of(device: Device) -> Hardware:
    """The device, what drives it, and the host around it, as texts."""
    threads = f", {torch.get_num_threads()} threads" if device.on_host else ""
    return {
        "device": f"{device.torch_device} {device_name(device)}",
        "device memory": str(device.total_bytes()),
        "driver": _first_line(_DRIVER) or "of the system",
        "torch": f"{torch.__version__}{threads}",
        "cpu": f"{cpu_name()}, {os.cpu_count()} cores",
        "system": platform.platform(),
    }


def disk_of(place: Path) -> str:
    """The file system that a folder or file lies on: its number and size. Raises OSError."""
    return f"{os.stat(place).st_dev} of {shutil.disk_usage(place).total} bytes"


def device_name(device: Device) -> str:
    """What the vendor calls the compute device; for the host its CPU."""
    return cpu_name() if device.on_host else device.model_name()


def cpu_name() -> str:
    """What the vendor calls the CPU, or its architecture where the system does not tell."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, [*named, platform.processor(), platform.machine()]), "unknown CPU")


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
