"""The trace file."""

import json
from pathlib import Path
from typing import Any

import pytest
from report_samples import Speeds, assert_golden, measured_of, plan_of

from blockswap.errors import OutputError
from blockswap.events import Measured
from blockswap.report import trace_of, write_trace


def of_phase(trace: dict[str, Any], phase: str) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == phase]


def test_a_small_trace_is_kept_to_the_last_event() -> None:
    plan = plan_of("Rmd")
    trace = trace_of(plan, measured_of(plan, forwards=1, speeds=Speeds(compute=0.0105)))
    assert_golden("small_trace.json", json.dumps(trace, indent=1))


def test_process_and_threads_are_named() -> None:
    plan = plan_of("Rmd")
    trace = trace_of(plan, measured_of(plan))
    names = [event["args"].get("name") for event in of_phase(trace, "M")]
    assert [name for name in names if name] == [
        "blockswap on cuda:0",
        "compute",
        "copy engine",
        "disk reads",
    ]


def test_rows_of_one_lane_are_numbered() -> None:
    plan = plan_of("RdddRddd", device="cpu")
    trace = trace_of(plan, measured_of(plan, speeds=Speeds(read=0.015, readers=2)))
    names = [event["args"].get("name") for event in of_phase(trace, "M")]
    assert "disk reads 1" in names
    assert "disk reads 2" in names


def test_every_bar_tells_bytes_slot_and_tier() -> None:
    plan = plan_of("Rmd")
    bars = of_phase(trace_of(plan, measured_of(plan)), "X")
    copy = next(bar for bar in bars if bar["name"] == "copy blocks.1")
    assert copy["args"]["copied_bytes"] == 100 * 2**20
    assert copy["args"]["slot"] == 0
    assert copy["args"]["tier"] == "ram"
    assert copy["dur"] == pytest.approx(6000.0)


def test_an_arrow_runs_from_read_to_copy_to_compute() -> None:
    plan = plan_of("Rd")
    trace = trace_of(plan, measured_of(plan, forwards=1))
    flows = [
        event
        for event in trace["traceEvents"]
        if event["cat" if "cat" in event else "ph"] == "flow"
    ]
    assert [event["ph"] for event in flows] == ["s", "t", "f"]
    assert [event["tid"] for event in flows] == [3, 2, 1]
    assert len({event["id"] for event in flows}) == 1


def test_every_arrow_end_lies_inside_a_bar_of_its_thread() -> None:
    plan = plan_of("RmmdRmmd")
    trace = trace_of(plan, measured_of(plan))
    bars = of_phase(trace, "X")
    for phase in "stf":
        for end in of_phase(trace, phase):
            assert any(
                bar["tid"] == end["tid"] and bar["ts"] <= end["ts"] < bar["ts"] + bar["dur"]
                for bar in bars
            )


def test_a_resident_has_no_arrow() -> None:
    plan = plan_of("RR")
    trace = trace_of(plan, measured_of(plan))
    assert of_phase(trace, "s") == []
    assert of_phase(trace, "f") == []


def test_the_file_is_json_and_carries_the_summary(tmp_path: Path) -> None:
    plan = plan_of("Rmd")
    write_trace(plan, measured_of(plan), tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["otherData"]["placement"]["block_map"] == "Rmd"


def test_a_trace_of_nothing_is_a_trace(tmp_path: Path) -> None:
    write_trace(plan_of("Rm"), Measured(()), tmp_path / "trace.json")
    assert len(json.loads((tmp_path / "trace.json").read_text())["traceEvents"]) == 1


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not there"):
        write_trace(plan_of("Rm"), Measured(()), tmp_path / "missing" / "trace.json")
