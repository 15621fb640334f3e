"""Owns what the command line prints through: texts are shown as they are, brackets and all."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

_FILE_WIDTH = 120  # columns of a table that goes into a file or a pipe


def new_console(*, stderr: bool = False) -> Console:
    """A console for one command, made late so that it finds the streams of that moment.

    Markup is off: `[0, 3]` in a path or a message is text, not a style.
    """
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, _FILE_WIDTH)
    return console


def print_error(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    line = Text("error: ", style="bold red").append(" ".join(message.split()), style="default")
    new_console(stderr=True).print(line, soft_wrap=True)


def new_table(*columns: str) -> Table:
    """A table whose first column is a name and whose others are figures, aligned right."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def print_facts(console: Console, title: str, facts: tuple[tuple[str, str], ...]) -> None:
    """A title and one line a fact, the names in a column of their own."""
    console.print(Text(title, style="bold"), soft_wrap=True)
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        line = Text(f"  {name:<{width}}  ", style="cyan").append(value, style="default")
        console.print(line, soft_wrap=True)


def new_progress(console: Console, *, quiet: bool = False) -> Progress:
    """A bar for long work; it vanishes into its last line, and is silent where no one watches."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=4,
        disable=quiet or not console.is_terminal,
    )
