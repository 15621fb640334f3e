"""Seconds of a forward under a plan: which units are copied or read, and at which speeds."""

from ..inputs.foresight import Speeds
from ..swap_plan import PlannedUnit, SwapPlan, Timing
from .pipeline import Pipeline, Stage


def timing_of(plan: SwapPlan, speeds: Speeds, *, on_host: bool) -> Timing:
    """A forward under `plan` in the steady state."""
    return pipeline_of(plan, speeds, on_host=on_host).timing()


def pipeline_of(plan: SwapPlan, speeds: Speeds, *, on_host: bool) -> Pipeline:
    """The plan as the timeline sees it."""
    return Pipeline(
        stages=tuple(stage_of(unit, speeds, on_host=on_host) for unit in plan.units),
        slots=plan.slots,
        prefetch=plan.prefetch,
        staging_buffers=plan.staging_buffers,
        rest_seconds=speeds.rest_seconds,
        on_host=on_host,
    )


def stage_of(unit: PlannedUnit, speeds: Speeds, *, on_host: bool) -> Stage:
    """The unit's place in the timeline."""
    seconds = speeds.compute_seconds[unit.name]
    moves = unit.tier == "disk" or (unit.tier == "ram" and not on_host)
    if not moves:
        return Stage(seconds, name=unit.name)
    decoding = speeds.decode_seconds.get((unit.name, unit.tier), 0.0)
    return Stage(
        seconds + decoding,
        streamed=True,
        copy_seconds=0.0 if on_host else _seconds(unit.slab_bytes, speeds.link),
        read_seconds=_seconds(unit.slab_bytes, speeds.disk) if unit.tier == "disk" else 0.0,
        name=unit.name,
        decode_seconds=decoding,
        nbytes=0 if on_host else unit.slab_bytes,
    )


def _seconds(nbytes: int, rate: float | None) -> float:
    return 0.0 if rate is None else nbytes / rate
