"""The simulated accelerator (`tests/simaccel`): configured, and asked for the time of a forward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

import simaccel as sim
from benchmarks.schedule.what import RATES, Rates, Steps

Forward = Callable[[torch.Tensor], object]


def prepare(rates: Rates = RATES, *, races: Literal["raise", "record", "off"] = "raise") -> None:
    """A fresh simulator with these rates: every clock and counter at zero, no launch overhead."""
    sim.ensure()
    sim.configure(
        h2d_gb_s=rates.link,
        d2h_gb_s=rates.link,
        pageable_gb_s=rates.pageable,
        disk_gb_s=rates.disk,
        races=races,
        unrecorded_waits="record" if races != "raise" else "raise",
    )
    sim.reset()


@dataclass(frozen=True, slots=True)
class Steady:
    """What a forward costs in the steady state: seconds, and per forward what was counted.

    `peak_bytes` is the device's peak over all forwards. `races` are accesses that nothing orders.
    """

    step_seconds: float
    host_syncs: float
    copied_bytes: float
    copied_back_bytes: float
    peak_bytes: int
    races: int


def steady_state(forward: Forward, steps: Steps) -> Steady:
    """Runs forwards one after the other and measures those after the first few.

    They follow each other without a pause, as the steps of a sampler that does not read its
    result do; the time is that between the ends of two forwards, divided by the forwards between,
    so neither filling nor draining of the pipeline is in it.
    """
    with torch.no_grad():
        hidden = torch.zeros((), device="sim")
        first = _run(forward, hidden, steps.warm)
        before = sim.counters()
        last = _run(forward, hidden, steps.measured)
        after = sim.counters()
    torch.accelerator.synchronize()

    def each(name: str) -> float:
        difference: int = getattr(after, name) - getattr(before, name)
        return difference / steps.measured

    return Steady(
        step_seconds=first.elapsed_time(last) / 1e3 / steps.measured,
        host_syncs=each("host_syncs_here"),
        copied_bytes=each("h2d_bytes"),
        copied_back_bytes=each("d2h_bytes"),
        peak_bytes=after.device_bytes_peak,
        races=len(sim.races()),
    )


def _run(forward: Forward, hidden: torch.Tensor, forwards: int) -> torch.Event:
    """Runs some forwards; the event stands at the end of the last one."""
    for _ in range(forwards):
        forward(hidden)
    end = torch.Event("sim", enable_timing=True)
    end.record()
    return end
