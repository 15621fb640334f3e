"""Tells rows of the schedule benchmark: as Markdown tables, as JSON and as a chart."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.schedule.what import (
    AUTOMATIC,
    BLOCK_TENSORS,
    BLOCKS,
    PEERS,
    RATES,
    READ_TENSOR_BYTES,
    STEPS,
    TARGET,
    TWO_SLOTS,
    Row,
    block_bytes,
)
from benchmarks.shared import results
from benchmarks.shared.chart import Line, Panel, draw
from benchmarks.shared.machine import machine
from benchmarks.shared.markdown import bullet_list, document, table


def conditions() -> dict[str, str]:
    """Machine, versions and everything that the simulator was told."""
    return machine() | {
        "clock": "simulated accelerator (tests/simaccel), virtual time, no launch overhead",
        "rates (1e9 bytes/s)": f"link {RATES.link:g} each way, pageable {RATES.pageable:g}, "
        f"disk {RATES.disk:g}, copies inside host memory {RATES.host:g}",
        "model": f"{BLOCKS} equal blocks of {block_bytes()} bytes in {BLOCK_TENSORS} tensors "
        f"({BLOCK_TENSORS * READ_TENSOR_BYTES} where ranks read parts of a file, for its sectors); "
        "what matters is only the ratio of the times, so small blocks serve",
        "measured": f"{STEPS.measured} forwards without a pause after {STEPS.warm} to warm up",
        "bound": "max(compute of all blocks, transfer of the streamed blocks over the slowest hop: "
        "of N ranks 1/N of them over a rank's link, the gather, and all once over the disk)",
        "target": f"ours at most {TARGET} x bound in every row",
    }


def write(rows: Sequence[Row]) -> None:
    """Writes JSON, Markdown and chart."""
    data = {"conditions": conditions(), "rows": [row.as_json() for row in rows]}
    results.write("schedule", data, report(rows))
    write_chart(rows, results.RESULTS / "schedule.png")


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
    for (name, tier), own in _by_schedule(rows).items():
        slots = sorted({row.slots for row in own} - {0})
        used = f" ({' or '.join(map(str, slots))} slots)" if slots else ""
        parts += [
            f"## {name}, {_FROM[tier]}{used}",
            "Columns are transfer / compute.",
            grid_table(own),
        ]
    return document(parts)


_FROM = {
    "ram": "from RAM",
    "disk": "from disk",
    "parts": "from RAM in parts",
    "file parts": "from the file in parts",
}


def summary_table(rows: Sequence[Row]) -> str:
    """One line per schedule and tier: how far above the bound it is at worst, and where."""
    lines = []
    for (name, tier), own in _by_schedule(rows).items():
        worst = max(own, key=lambda row: row.over_bound)
        full = max((row.over_bound for row in own if row.streamed == row.blocks), default=0.0)
        waits = max(row.forward_thread_waits for row in own)
        back = max(row.copied_back_bytes / row.blocks for row in own)
        lines.append(
            f"| {name} | {tier} | **{worst.over_bound:.3f}** | {worst.fraction:.0%} streamed, "
            f"transfer/compute {worst.ratio:g} | {full:.3f} | {waits:.0f} | "
            f"{'yes' if back > 1024 else 'none'} |"
        )
    head = (
        "| schedule | tier | worst, all rows | where | worst, 100 % streamed | "
        "forward thread waits | bytes back |"
    )
    return table(head, lines)


def _by_schedule(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by schedule and tier, in the order in which these come first."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.schedule, row.tier), []).append(row)
    return found


def grid_table(rows: Iterable[Row]) -> str:
    """Step time / bound of one schedule: lines are fractions streamed, columns the ratios."""
    cells = {(row.fraction, row.ratio): row.over_bound for row in rows}
    ratios = sorted({ratio for _, ratio in cells})
    lines = []
    for fraction in sorted({fraction for fraction, _ in cells}):
        values = " | ".join(f"{cells[fraction, ratio]:.3f}" for ratio in ratios)
        lines.append(f"| {fraction:.0%} | {values} |")
    return table("| streamed | " + " | ".join(f"{ratio:g}" for ratio in ratios) + " |", lines)


def write_chart(rows: Sequence[Row], path: Path) -> None:
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
    draw(panels, path, x_label="transfer / compute of a forward", y_label="step time / bound")
