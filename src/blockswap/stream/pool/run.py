"""The unit that is running: its thread, stream and slot, and whether it is really under way."""

import threading
from dataclasses import dataclass
from typing import Any

import torch

from ..marks import Mark
from ..threads.call_stack import calls_here, still_inside
from .buffers import Slot


@dataclass(slots=True)
class Run:
    """The unit `index` of a swap, run by `thread` on `stream`."""

    index: int
    name: str
    module: torch.nn.Module
    thread: threading.Thread
    stream: Any
    mark: Mark | None
    slot: Slot | None = None
    refused: int = 0  # entries of the same unit inside its run: each leaves once, and is not it
    bound: bool = False  # the unit's weights (may) hang in the model
    users: int = 0  # who refers to these weights, before its forward
    by_method: bool = False  # begun by a method beside the call: it lasts until another one begins
    methods: int = 0  # calls of such methods that are under way

    @property
    def is_here(self) -> bool:
        """Whether this thread runs it."""
        return self.thread is threading.current_thread()

    def take_mark(self) -> Mark | None:
        """The mark, which is the run's no more."""
        mark, self.mark = self.mark, None
        return mark

    def calls_here(self) -> int:
        """How many calls of the unit's module, or of methods that run it, this thread is in."""
        return calls_here(self.module) + self.methods

    def goes_on(self) -> bool:
        """Whether what this thread does to the unit now belongs to the run."""
        return self.is_here and (self.by_method or self.calls_here() > 0)

    def is_under_way(self) -> bool:
        """Whether its thread is really still in it: an interrupt leaves runs that nobody ends."""
        return still_inside(self.thread, self.module)
