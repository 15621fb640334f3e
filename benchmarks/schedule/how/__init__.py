"""Measures one point of the grid: its schedule, ours or a peer's, on the simulated accelerator."""

from benchmarks.schedule.how.ours import (
    Outcome,
    run_from_disk,
    run_from_file_in_parts,
    run_from_ram,
    run_in_parts,
)
from benchmarks.schedule.how.theirs import run_peer
from benchmarks.schedule.what import Point, Row

RUNNERS = {
    "ram": run_from_ram,
    "disk": run_from_disk,
    "parts": run_in_parts,
    "file parts": run_from_file_in_parts,
}


def measure(point: Point) -> Row:
    """Runs the point; what came out, as a row of the result."""
    outcome = _run(point)
    steady = outcome.steady
    return Row(
        schedule=point.schedule,
        tier=point.tier,
        slots=outcome.slots,
        blocks=point.case.blocks,
        streamed=point.case.streamed,
        ratio=point.case.ratio,
        step_seconds=steady.step_seconds,
        bound_seconds=outcome.bound_seconds,
        over_bound=outcome.over_bound,
        forward_thread_waits=steady.host_syncs,
        copied_bytes=steady.copied_bytes,
        copied_back_bytes=steady.copied_back_bytes,
        peak_bytes=steady.peak_bytes,
    )


def _run(point: Point) -> Outcome:
    if point.setting is None:
        return run_peer(point.schedule, point.case)
    return RUNNERS[point.tier](point.case, point.setting)
