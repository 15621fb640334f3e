"""The line on a node: the plan; while the model runs, what is streamed and how much time waits."""

import time
from collections.abc import Callable

from ...plan import SwapPlan
from ...units import format_bytes
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


def plan_sentence(plan: SwapPlan, granted_bytes: int) -> str:
    """What stays, what is streamed, and whether weights and slots fit in what is granted now."""
    stay, streamed = len(plan.residents), len(plan.streamed)
    said = f"plan: {stay} of {stay + streamed} units stay, {streamed} are streamed"
    if streamed:
        said += f" ({format_bytes(plan.streamed_bytes)}), {plan.map_words()}"
    need = f"{format_bytes(plan.device_bytes)} of weights and slots on {plan.device}"
    if plan.device_bytes <= granted_bytes:
        return f"{said}; {need} fit in the {format_bytes(granted_bytes)} that are free now"
    return (
        f"{said}; {need}, {format_bytes(granted_bytes)} are free now: other models leave for it, "
        "or ComfyUI keeps a part in RAM"
    )
