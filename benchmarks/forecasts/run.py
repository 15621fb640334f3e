"""Runs the forecasts of the README: prints them, and writes them there if asked."""

from collections.abc import Sequence

from benchmarks.forecasts.tell import forecasts, write
from benchmarks.shared.options import parser_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, or writes it between its marks in the README."""
    parser = parser_of("benchmarks.forecasts")
    parser.add_argument("--write", action="store_true", help="into the README")
    options = parser.parse_args(arguments)
    made = forecasts()
    if options.write:
        write(made)
    print(made)
    return 0
