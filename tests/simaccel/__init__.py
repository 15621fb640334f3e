"""A simulated accelerator for torch, test code only: device "sim", one per process.

It computes on the CPU, but it is *asynchronous* as a GPU is (one worker thread per stream), it
keeps a deterministic virtual clock, it finds missing waits whatever the timing, and it counts.
README.md tells how to use it; every function below says what it does.

    import simaccel as sim

    sim.ensure()                                  # build, load, register; once per process
    sim.configure(h2d_gb_s=10, mode="lazy")       # everything else back to its default
    sim.reset()                                   # clocks, counters and races from zero
    x = torch.ones(4, device="sim")
"""

from __future__ import annotations

from ._api import (
    Clock,
    Counters,
    Race,
    Side,
    TraceRecord,
    advance_host,
    clock,
    compute,
    configure,
    counters,
    disk_read,
    host_read,
    host_write,
    label,
    locked_bytes,
    races,
    reset,
    trace,
)
from ._build import CannotBuild
from ._handovers import follow_handovers
from ._register import ensure, unavailable_reason

__all__ = [
    "CannotBuild",
    "Clock",
    "Counters",
    "Race",
    "Side",
    "TraceRecord",
    "advance_host",
    "clock",
    "compute",
    "configure",
    "counters",
    "disk_read",
    "ensure",
    "follow_handovers",
    "host_read",
    "host_write",
    "label",
    "locked_bytes",
    "races",
    "reset",
    "trace",
    "unavailable_reason",
]
