"""Owns what the command line does when its surroundings fail it: one sentence and exit code 2.

A module that is not installed, memory that is not to be had, an output that cannot be written, a
current folder that is gone. What is none of these is a bug of ours and keeps its traceback.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Where a module comes in a package of another name.
_PACKAGES = {"PIL": "pillow", "av": "av", "typer": "typer", "click": "typer"}
_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "failed to map segment",
    "not enough memory",
    "can't start new thread",
    "bad_alloc",
    "could not create a primitive",  # of oneDNN
)
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EFBIG)


def print_anything() -> None:
    """From here on a letter that the output's encoding lacks is printed as its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def refuse_surroundings() -> None:
    """Leaves through SystemExit where no command can do its work, before any is begun."""
    if sys.stdout is None:
        # The answer would be lost, and the next file that is opened would be taken for it.
        _tell("the output is closed: leave it open, or send it to /dev/null")
        sys.exit(2)
    try:
        os.getcwd()
    except OSError:  # without one not even torch can be loaded
        _tell("the folder that the command was started in is gone: go to another folder")
        sys.exit(2)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Around a command: leaves through SystemExit where the surroundings are to blame."""
    code: object = 0
    try:
        try:
            yield
        except SystemExit as end:
            code = end.code
        if sys.stdout is not None:
            sys.stdout.flush()  # or it fails behind our back, when the interpreter ends
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        _tell(sentence)
        code = 2
    if code:
        sys.exit(code)  # type: ignore[arg-type]


def _sentence(error: BaseException) -> str | None:
    """What to say of `error`, or of what caused it; None for a bug."""
    found: BaseException | None = error
    seen: list[BaseException] = []
    while found is not None and found not in seen:
        seen.append(found)
        said = _missing(found) or _memory(found) or _output(found)
        if said:
            return said
        found = found.__cause__ or found.__context__
    return None


def _missing(error: BaseException) -> str | None:
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    name = error.name.partition(".")[0]
    if name == "blockswap":
        return None
    package = _PACKAGES.get(name, name)
    return f"this command needs {name}, which is not installed: run pip install {package}"


def _memory(error: BaseException) -> str | None:
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    told = str(error).lower()
    if isinstance(error, (ImportError, OSError, RuntimeError, SystemError)):
        no_memory = no_memory or any(text in told for text in _NO_MEMORY)
    if not no_memory and not isinstance(error, MemoryError):
        return None
    return (
        "there is not enough memory for this command: close other programs, or raise the limit "
        "that was set for it (ulimit -v)"
    )


def _output(error: BaseException) -> str | None:
    if not isinstance(error, OSError) or error.errno not in _UNWRITABLE or error.filename:
        return None
    reason = os.strerror(error.errno or 0).lower()
    return f"the output cannot be written ({reason}): send it to another place"


def _tell(sentence: str) -> None:
    with suppress(OSError, ValueError):
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            # What is left in the buffer would fail once more at the end, with a traceback.
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)
