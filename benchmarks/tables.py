"""Rows of the schedule benchmark as Markdown tables."""

from collections.abc import Iterable, Sequence

from benchmarks.grid import Row


def summary_table(rows: Sequence[Row]) -> str:
    """One line per schedule and tier: how far above the bound it is at worst, and where."""
    lines = [
        "| schedule | tier | worst, all rows | where | worst, 100 % streamed | "
        "forward thread waits | bytes back |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, tier in dict.fromkeys((row.schedule, row.tier) for row in rows):
        own = [row for row in rows if (row.schedule, row.tier) == (name, tier)]
        worst = max(own, key=lambda row: row.over_bound)
        full = max((row.over_bound for row in own if row.streamed == row.blocks), default=0.0)
        waits = max(row.forward_thread_waits for row in own)
        back = max(row.copied_back_bytes / row.blocks for row in own)
        lines.append(
            f"| {name} | {tier} | **{worst.over_bound:.3f}** | {worst.fraction:.0%} streamed, "
            f"transfer/compute {worst.ratio:g} | {full:.3f} | {waits:.0f} | "
            f"{'yes' if back > 1024 else 'none'} |"
        )
    return "\n".join(lines)


def grid_table(rows: Iterable[Row]) -> str:
    """Step time / bound of one schedule: lines are fractions streamed, columns the ratios."""
    cells = {(row.fraction, row.ratio): row.over_bound for row in rows}
    ratios = sorted({ratio for _, ratio in cells})
    lines = [
        "| streamed | " + " | ".join(f"{ratio:g}" for ratio in ratios) + " |",
        "|---" * (len(ratios) + 1) + "|",
    ]
    for fraction in sorted({fraction for fraction, _ in cells}):
        values = " | ".join(f"{cells[fraction, ratio]:.3f}" for ratio in ratios)
        lines.append(f"| {fraction:.0%} | {values} |")
    return "\n".join(lines)
