"""A patch (LoRA) that the host drops because memory ran out is an error here, never a wrong weight.

The host's arithmetic of patches catches every error, logs it and goes on with the weight as it is.
What is no patch for the weight is meant to be passed over so; lack of memory is not.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Ear(logging.Handler):
    """Hears what this thread logs of a patch that found no memory."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._thread = threading.get_ident()
        self.heard: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.thread == self._thread and "out of memory" in text.lower():
            self.heard = text


@contextmanager
def none_lost() -> Iterator[None]:
    """Raises torch.OutOfMemoryError where the host has dropped a patch for lack of memory."""
    ear, root = _Ear(), logging.getLogger()
    root.addHandler(ear)
    try:
        yield
    finally:
        root.removeHandler(ear)
    if ear.heard is not None:
        raise torch.OutOfMemoryError(f"a patch found no memory: {ear.heard}")
