"""Owns how a forecast is told: tables for a person, a dictionary for a program."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from ..forecast import Forecast, Order, Point, host_bytes, host_parts, verdict_of
from ..forecast.figures import PUBLISHED_DTYPE
from ..units import format_bytes, format_seconds
from .console import new_table, print_facts

_MORE = "*"  # marks a row of a sweep that the device is too small for
_ROWS = 17  # of a sweep, printed; the picture and the JSON have all of them


def print_forecast(console: Console, told: Forecast, notes: Sequence[str]) -> None:
    """The verdict, the plan as a table, the map of blocks, the figures, and the reasons."""
    console.print(verdict_of(told).sentence, soft_wrap=True)
    print_facts(console, _title(told.order), _facts(told))
    table = new_table("phase", "weights", "activations", "peak")
    for phase in told.phases:
        sizes = (phase.weight_bytes, phase.activation_bytes, phase.peak_bytes)
        table.add_row(phase.name, *(format_bytes(size) for size in sizes))
    console.print(table)
    for sentence in (*told.plan.sentences, *told.warnings, *notes):
        console.print(f"- {sentence}", soft_wrap=True)


def _title(order: Order) -> str:
    return f"{order.model.label}: {order.workload.words}"


def _facts(told: Forecast) -> tuple[tuple[str, str], ...]:
    plan, machine = told.plan, told.order.machine
    slots = f"{plan.slots} of {format_bytes(plan.slot_bytes)}" if plan.slots else "none"
    facts = [
        ("machine", "unknown" if machine is None else f"{machine.name} ({machine.source})"),
        ("computes in", dtype_words(told.order)),
        ("blocks", f"{plan.map_words()}   R stays, m from RAM, d from disk"),
        ("slots", slots),
        ("on the device", f"{format_bytes(plan.device_bytes)} of weights and slots"),
        ("in the host", _host_words(told)),
        ("other packs", f"blocks_to_swap {told.blocks_to_swap}"),
    ]
    if plan.timing is not None:
        facts.append(("a forward", _time(told)))
    return tuple(facts)


def _host_words(told: Forecast) -> str:
    """The total of a run, and what it is made of; what one model pins is a part of it."""
    parts = ", ".join(f"{name} {format_bytes(nbytes)}" for name, nbytes in host_parts(told))
    plan = told.plan
    pinned = plan.pinned_bytes + plan.staging_buffers * plan.staging_bytes
    said = f"; {format_bytes(pinned)} of it pinned at a time" if pinned else ""
    return f"{format_bytes(host_bytes(told))} in all: {parts}{said}"


def dtype_words(order: Order) -> str:
    """In which dtype the weights compute, how they are stored, and what half the bytes would do."""
    computed, stored = order.workload.dtype, order.model.stored
    if stored is None:
        return f"{computed}, as published" if computed == PUBLISHED_DTYPE else computed
    if computed != stored:
        return f"{computed}; the file holds {stored}"
    if computed == "float32":
        return f"{computed}, as stored; --dtype bfloat16 takes half"
    return f"{computed}, as stored"


def _time(told: Forecast) -> str:
    timing = told.plan.timing
    assert timing is not None
    said = format_seconds(timing.step_seconds)
    said += f", {format_seconds(timing.compute_seconds)} of compute"
    if timing.decode_seconds:
        said += f" ({format_seconds(timing.decode_seconds)} of it decoding)"
    for name, seconds in (("copies", timing.copy_seconds), ("reads", timing.read_seconds)):
        if seconds:
            said += f", {format_seconds(seconds)} of {name}"
    return f"{said}, {format_seconds(timing.exposed_seconds)} of waiting"


def print_sweep(
    console: Console, order: Order, points: Sequence[Point], notes: Sequence[str]
) -> None:
    """Every fourth budget as a row."""
    print_facts(console, _title(order), (("computes in", dtype_words(order)),))
    table = new_table("budget", "peak", "stay", "streamed", "a forward")
    shown = {round(i * (len(points) - 1) / (_ROWS - 1)) for i in range(_ROWS)}
    for at in sorted(shown):
        point = points[at]
        seconds = "?" if point.step_seconds is None else format_seconds(point.step_seconds)
        sizes = (
            format_bytes(point.budget_bytes) + _beyond(order, point),
            format_bytes(point.peak_bytes),
        )
        table.add_row(*sizes, str(point.residents), str(point.streamed), seconds)
    console.print(table)
    if any(_beyond(order, point) for point in points):
        room = format_bytes(order.device_free_bytes or 0)
        console.print(f"{_MORE} more than there is on the device ({room})", soft_wrap=True)
    for sentence in notes:
        console.print(f"- {sentence}", soft_wrap=True)


def _beyond(order: Order, point: Point) -> str:
    """The mark of a budget that the device has no memory for."""
    free = order.device_free_bytes
    return f" {_MORE}" if free is not None and point.budget_bytes > free else ""


def as_dict(told: Forecast, notes: Sequence[str]) -> dict[str, Any]:
    """Dictionaries, lists, numbers and texts, ready for `json.dumps`."""
    plan, machine = told.plan, told.order.machine
    verdict = verdict_of(told)
    return {
        "fits": verdict.fits,
        "verdict": verdict.sentence,
        "model": told.order.model.label,
        "host": dict(host_parts(told)) | {"total": host_bytes(told)},
        "workload": asdict(told.order.workload),
        "computes_in": dtype_words(told.order),
        "machine": None if machine is None else machine.to_dict(),
        "plan": asdict(plan) | {"block_map": plan.block_map(), "peak_bytes": plan.peak_bytes},
        "margin_bytes": told.margin_bytes,
        "phases": [asdict(phase) | {"peak_bytes": phase.peak_bytes} for phase in told.phases],
        "blocks_to_swap": told.blocks_to_swap,
        "notes": [*told.warnings, *notes],
    }
