"""What the schedule benchmark writes: grid, tables, verdict."""

from benchmarks.schedule.tell import grid_table, summary_table
from benchmarks.schedule.what import AUTOMATIC, FRACTIONS, RATIOS, Row, misses, points


def row(schedule: str = AUTOMATIC, *, streamed: int = 4, ratio: float = 1.0, over: float) -> Row:
    return Row(schedule, "ram", 3, 4, streamed, ratio, over, 1.0, over, 0.0, 1.0, 0.0, 1)


def test_the_grid_table_has_fractions_down_and_ratios_across() -> None:
    table = grid_table(
        [row(streamed=2, ratio=2.0, over=1.5), row(streamed=2, ratio=0.5, over=1.25)]
    )
    assert table == "| streamed | 0.5 | 2 |\n|---|---|---|\n| 50% | 1.250 | 1.500 |"


def test_the_summary_names_the_worst_row_and_keeps_rows_where_a_peer_wins() -> None:
    table = summary_table([row(over=1.01), row(over=1.0125, ratio=2.0), row("peer", over=1.0)])
    ours, peer = table.splitlines()[2:]
    assert "**1.012** | 100% streamed, transfer/compute 2 |" in ours
    assert peer.startswith("| peer | ram | **1.000**")


def test_only_our_own_automatic_rows_above_the_target_are_misses() -> None:
    missed = row(over=1.021)
    assert misses([missed, row(over=1.02), row("ours, two slots", over=1.1)]) == [missed]


def test_the_grid_covers_the_ratios_and_fractions_that_are_promised() -> None:
    ours = [point.case for point in points() if point.schedule == AUTOMATIC]
    assert {case.ratio for case in ours} >= {0.1, 1.0, 10.0}
    assert {case.streamed / case.blocks for case in ours} == set(FRACTIONS)
    assert len(ours) == 2 * len(FRACTIONS) * len(RATIOS)
