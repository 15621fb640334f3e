"""The probe: what this machine can do, measured once and kept."""

from .measure import Probe, cached_probe, probe
from .values import DevicePart, DiskPart, Figure, Limits, Trial

__all__ = [
    "DevicePart",
    "DiskPart",
    "Figure",
    "Limits",
    "Probe",
    "Trial",
    "cached_probe",
    "probe",
]
