"""The line on the node while the model runs: what is streamed, and how much of the time waits."""

import time
from collections.abc import Callable

from ..seams import host

_EVERY_SECONDS = 0.5


class StatusLine:
    """Called after each forward; sends the line to a node now and then."""

    def __init__(self, line: Callable[[], str]) -> None:
        self.node_id: str | None = None  # the node whose clone runs; clones share what is held
        self._line = line
        self._sent_seconds = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if self.node_id is not None and now - self._sent_seconds >= _EVERY_SECONDS:
            self._sent_seconds = now
            send_text(self.node_id, self._line())


def send_text(node_id: str | None, text: str) -> None:
    """Shows `text` on a node, where there is one."""
    if node_id is not None:
        host.show_text(node_id, text)
