"""Tells what the overhead benchmark found: a table, where the time goes, and the same as JSON."""

from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.host_overhead.what import (
    BLOCKS,
    FORWARDS,
    TARGET_MICROSECONDS,
    TENSORS,
    Overhead,
)
from benchmarks.shared import results
from benchmarks.shared.machine import machine
from benchmarks.shared.markdown import bullet_list, document, table


def write(found: Sequence[Overhead]) -> None:
    data = {"conditions": conditions(), "results": [asdict(one) for one in found]}
    results.write("host_overhead", data, report(found))


def report(found: Sequence[Overhead]) -> str:
    """The results as Markdown."""
    parts = [
        "# Host time of the engine per block",
        bullet_list(conditions()),
        table(
            "| | median µs | 10 % below | 90 % below |",
            (
                f"| {one.what} | **{one.median:.1f}** | {one.tenth:.1f} | {one.ninetieth:.1f} |"
                for one in found
            ),
        ),
    ]
    for one in found:
        if one.sections:
            parts += [f"## Where it goes: {one.what}", _section_table(one)]
        if one.device_calls:
            calls = ", ".join(
                f"{name} {count:.2f}" for name, count in sorted(one.device_calls.items()) if count
            )
            parts.append(f"Calls to the device per block: {calls}.")
    return document(parts)


def _section_table(found: Overhead) -> str:
    total = sum(found.sections.values())
    ordered = sorted(found.sections.items(), key=lambda item: -item[1])
    return table(
        "| part | share | µs of the median |",
        (
            f"| {name} | {100 * seconds / total:.0f} % | {found.median * seconds / total:.1f} |"
            for name, seconds in ordered
        ),
    )


def conditions() -> dict[str, str]:
    return machine() | {
        "model": f"{BLOCKS} blocks of {TENSORS} tensors whose forward does nothing",
        "measured": f"every block of {FORWARDS} forwards, bare and swapped in turn",
        "shares": "by a stopwatch around the engine's functions, which itself slows the run",
        "target": f"median at most {TARGET_MICROSECONDS:g} µs with everything streamed from RAM",
    }
