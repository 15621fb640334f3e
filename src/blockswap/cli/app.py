"""Owns the `blockswap` command: its subcommands, its exit codes, and how a refusal is printed."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import BlockSwapError
from .console import print_error
from .convert import convert
from .demo import demo
from .generate import generate
from .inspect import inspect
from .plan import plan
from .probe import probe
from .synth import synth


class Commands(TyperGroup):
    """Turns a refusal into one line and exit code 2, an interrupt into one line and 130.

    Anything else is a bug of ours and keeps its traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BlockSwapError as error:
            print_error(str(error))
            raise typer.Exit(2) from error
        except KeyboardInterrupt as interrupt:
            print_error(str(interrupt) or "interrupted before it was done")
            raise typer.Exit(130) from interrupt


app = typer.Typer(
    name="blockswap",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    # Typer's own traceback hides frames and prints the locals, tensors among them.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(convert)
app.command()(demo)
app.command()(generate)
app.command()(inspect)
app.command()(plan)
app.command()(probe)
app.command()(synth)


def _print_version(asked: bool) -> None:
    if not asked:
        return
    try:
        typer.echo(f"blockswap {version('wanvideo-blockswap')}")
    except PackageNotFoundError:
        typer.echo("blockswap, run from its source folder without being installed")
    raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Run Wan video transformers that do not fit: blocks are streamed in just before they run."""
