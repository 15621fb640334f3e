"""Runs the forecast of every published run and prints it beside what was published."""

from benchmarks.forecasts_published.how import forecast_seconds
from benchmarks.forecasts_published.tell import report
from benchmarks.forecasts_published.what import RUNS


def main() -> int:
    """Prints the table."""
    print(report((run, forecast_seconds(run)) for run in RUNS))
    return 0
