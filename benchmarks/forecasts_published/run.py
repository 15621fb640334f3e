"""Runs the forecast of every published run and prints it beside what was published."""

from benchmarks.forecasts_published.how import forecast_seconds
from benchmarks.forecasts_published.tell import HEAD, line
from benchmarks.forecasts_published.what import RUNS


def main() -> int:
    """Prints the table."""
    print(HEAD)
    for run in RUNS:
        print(line(run, forecast_seconds(run)))
    return 0
