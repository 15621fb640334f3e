"""The command line. This module only starts it, so that a missing extra is one sentence."""

import sys

_EXTRA = frozenset({"typer", "rich", "click"})


def main() -> None:
    """Entry point of the `blockswap` command; leaves through SystemExit.

    Exit codes: 0 done, 1 a result is wrong, 2 a refusal (one line on stderr), 130 interrupted.
    """
    from .surroundings import one_sentence, print_anything, refuse_surroundings

    print_anything()
    refuse_surroundings()
    try:
        from .app import app
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        print(
            f"error: the blockswap command needs {error.name}, which is not installed: "
            'run pip install "wanvideo-blockswap[cli]"',
            file=sys.stderr,
        )
        sys.exit(2)
    with one_sentence():
        app()
