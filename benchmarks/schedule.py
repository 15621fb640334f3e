"""How close to the bound a forward runs, for our schedule and others', on an exact virtual clock.

python -m benchmarks.schedule            # some minutes; writes benchmarks/results/schedule.*
python -m benchmarks.schedule --quick    # a thin grid, printed only
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence

from benchmarks.chart import Line, Panel, draw
from benchmarks.conditions import RESULTS, bullet_list, machine
from benchmarks.grid import AUTOMATIC, BLOCKS, HELD_TO_TARGET, TWO_SLOTS, Row, points
from benchmarks.peers import PEERS
from benchmarks.simulator import RATES, STEPS
from benchmarks.tables import grid_table, summary_table
from benchmarks.workload import BLOCK_TENSORS, block_bytes

TARGET = 1.02
RESULT = RESULTS / "schedule.json"


def conditions() -> dict[str, str]:
    """Machine, versions and everything that the simulator was told."""
    return machine() | {
        "clock": "simulated accelerator (tests/simaccel), virtual time, no launch overhead",
        "rates (1e9 bytes/s)": f"link {RATES.link:g} each way, pageable {RATES.pageable:g}, "
        f"disk {RATES.disk:g}, copies inside host memory {RATES.host:g}",
        "model": f"{BLOCKS} equal blocks of {block_bytes()} bytes in {BLOCK_TENSORS} tensors; "
        "what matters is only the ratio of the times, so small blocks serve",
        "measured": f"{STEPS.measured} forwards without a pause after {STEPS.warm} to warm up",
        "bound": "max(compute of all blocks, transfer of the streamed blocks over the slowest hop)",
        "target": f"ours at most {TARGET} x bound in every row",
    }


def measure(*, quick: bool, only: str = "") -> list[Row]:
    """Runs the grid, or what has `only` in its 'schedule, tier'; says how far it is."""
    todo = [point for point in points(quick=quick) if only in f"{point.schedule}, {point.tier}"]
    rows: list[Row] = []
    began = time.monotonic()
    for number, point in enumerate(todo, start=1):
        rows.append(point.measure())
        if number % 20 == 0 or number == len(todo):
            elapsed = time.monotonic() - began
            print(f"\r{number}/{len(todo)} runs, {elapsed:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return rows


def report(rows: Sequence[Row]) -> str:
    """The whole result as Markdown."""
    parts = [
        "# Step time over bound",
        bullet_list(conditions()),
        "Figures are step time / bound in the steady state: 1.000 is what no schedule can beat. "
        "Rows where another schedule is as fast as ours, or faster, are kept.",
        "![step time over bound](schedule.png)",
        summary_table(rows),
    ]
    for name, tier in dict.fromkeys((row.schedule, row.tier) for row in rows):
        own = [row for row in rows if (row.schedule, row.tier) == (name, tier)]
        slots = sorted({row.slots for row in own} - {0})
        used = f" ({' or '.join(map(str, slots))} slots)" if slots else ""
        parts += [
            f"## {name}, {'from RAM' if tier == 'ram' else 'from disk'}{used}",
            "Columns are transfer / compute.",
            grid_table(own),
        ]
    return "\n\n".join(parts) + "\n"


def write_chart(rows: Sequence[Row]) -> None:
    """Draws step / bound over the ratio for most and for all of the blocks streamed."""
    panels = []
    for fraction in (0.8, 1.0):
        lines = []
        for name in (AUTOMATIC, TWO_SLOTS, *PEERS):
            own = [
                row
                for row in rows
                if row.schedule == name and row.tier == "ram" and row.fraction == fraction
            ]
            lines.append(Line(name, sorted((row.ratio, row.over_bound) for row in own)))
        panels.append(Panel(f"{fraction:.0%} of {BLOCKS} blocks streamed from RAM", lines))
    draw(
        panels,
        RESULTS / "schedule.png",
        x_label="transfer / compute of a forward",
        y_label="step time / bound",
    )


def misses(rows: Sequence[Row]) -> list[Row]:
    """Our rows, as the plan chooses by itself, that are above the target."""
    return [row for row in rows if row.schedule in HELD_TO_TARGET and row.over_bound > TARGET]


def kept_rows(measured: Sequence[Row]) -> list[Row]:
    """Rows of the last result whose schedules were not measured now."""
    again = {(row.schedule, row.tier) for row in measured}
    rows = [Row(**row) for row in json.loads(RESULT.read_text())["rows"]]
    return [row for row in rows if (row.schedule, row.tier) not in again]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, writes or prints, and returns 1 when ours misses its target in any row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a thin grid, printed only")
    parser.add_argument("--only", default="", help="part of 'schedule, tier'; other rows are kept")
    options = parser.parse_args(arguments)
    rows = measure(quick=options.quick, only=options.only)
    if not options.quick:
        rows += kept_rows(rows) if options.only else []
        order = [(point.schedule, point.tier) for point in points()]
        rows.sort(key=lambda row: order.index((row.schedule, row.tier)))
        write(rows)
    print(summary_table(rows))
    for row in misses(rows):
        print(f"MISSED: {row}", file=sys.stderr)
    return 1 if misses(rows) else 0


def write(rows: Sequence[Row]) -> None:
    """Writes JSON, Markdown and chart."""
    RESULTS.mkdir(exist_ok=True)
    result = {"conditions": conditions(), "rows": [row.as_json() for row in rows]}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "schedule.md").write_text(report(rows))
    write_chart(rows)


if __name__ == "__main__":
    sys.exit(main())
