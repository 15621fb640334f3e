"""The trace file for chrome://tracing and ui.perfetto.dev: its events, threads and arrows.

The format is Google's "Trace Event Format": complete events (`ph` X, microseconds), metadata
events (`ph` M) that name the process and its threads, and flow events (`ph` s, t, f) that draw an
arrow from a block's read to its copy to its compute.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

from ..events import Measured, Visit
from ..plan.swap_plan import SwapPlan
from .lanes import Bar, Lane, lanes_of
from .output import write_whole
from .summary import summarise

_PROCESS = 1
_NAMES = {"waiting": "waiting for ", "copy": "copy ", "read": "read "}


def trace_of(plan: SwapPlan, measured: Measured) -> dict[str, Any]:
    """The trace of all visits on record, as a JSON-able value; times are microseconds."""
    lanes = lanes_of(measured, (float("-inf"), float("inf")))
    threads = [(lane, number) for lane in lanes for number in range(len(lane.rows))]
    events: list[dict[str, Any]] = [_named("process_name", 0, f"blockswap on {plan.device}")]
    places: dict[int, list[tuple[int, Bar]]] = {}
    for thread, (lane, number) in enumerate(threads, start=1):
        events.append(_named("thread_name", thread, _title(lane, number)))
        events.append(_metadata("thread_sort_index", thread, {"sort_index": thread}))
        for bar in lane.rows[number]:
            events.append(_complete(bar, thread))
            if bar.kind != "waiting":
                places.setdefault(id(bar.visit), []).append((thread, bar))
    for flow, bars in enumerate(places.values(), start=1):
        events.extend(_arrows(flow, bars))
    summary = summarise(plan, measured).to_dict()
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": summary}


def write_trace(plan: SwapPlan, measured: Measured, path: str | os.PathLike[str]) -> None:
    """Writes the trace, whole or not at all. Raises OutputError where it cannot be written."""
    text = json.dumps(trace_of(plan, measured), indent=None, separators=(",", ":"))
    write_whole(path, lambda file: file.write(text.encode()))


def _title(lane: Lane, number: int) -> str:
    return lane.title if len(lane.rows) == 1 else f"{lane.title} {number + 1}"


def _metadata(what: str, thread: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": _PROCESS, "tid": thread, "args": args}


def _named(what: str, thread: int, name: str) -> dict[str, Any]:
    return _metadata(what, thread, {"name": name})


def _complete(bar: Bar, thread: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": _NAMES.get(bar.kind, "") + bar.visit.unit,
        "cat": bar.kind,
        "pid": _PROCESS,
        "tid": thread,
        "ts": _microseconds(bar.start),
        "dur": _microseconds(bar.end - bar.start),
        "args": _args(bar.visit),
    }


def _args(visit: Visit) -> dict[str, Any]:
    return {
        "forward": visit.forward,
        "unit": visit.unit,
        "tier": visit.tier,
        "slot": visit.slot,
        "copied_bytes": visit.copied_bytes,
        "exposed_us": _microseconds(visit.exposed_seconds),
    }


def _arrows(flow: int, bars: list[tuple[int, Bar]]) -> Iterator[dict[str, Any]]:
    # A read ends before its copy and a copy before its compute, so order of start is their order.
    ordered = sorted(bars, key=lambda place: place[1].start)
    for position, (thread, bar) in enumerate(ordered if len(ordered) > 1 else ()):
        last = position == len(ordered) - 1
        phase = "s" if position == 0 else "f" if last else "t"
        # An arrow is tied to the bar that contains its time: its start is inside every bar.
        yield {
            "ph": phase,
            "name": "block",
            "cat": "flow",
            "id": flow,
            "pid": _PROCESS,
            "tid": thread,
            "ts": _microseconds(bar.start),
        } | ({"bp": "e"} if last else {})


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
