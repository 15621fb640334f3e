"""An accelerator that does nothing: what is left is the engine's own time on the host.

Streams and events are tokens, memory is host memory, a copy moves the few bytes of a test block.
Every call that would reach a driver is counted.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from blockswap.stream.device import Event, Host


class NullEvent:
    """An event that has always passed."""

    def __init__(self, calls: Counter[str]) -> None:
        self._calls = calls

    def record(self, _stream: Any) -> None:
        self._calls["event.record"] += 1

    def synchronize(self) -> None:
        self._calls["event.synchronize"] += 1

    def query(self) -> bool:
        self._calls["event.query"] += 1
        return True

    def elapsed_time(self, _end: Any) -> float:
        self._calls["event.elapsed_time"] += 1
        return 0.0


class NullDevice(Host):
    """An accelerator to the engine, the host in truth. `calls` counts what it is asked."""

    on_host = False

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self._off = contextlib.nullcontext()

    def current_stream(self) -> Any:
        self.calls["current_stream"] += 1
        return "compute"

    def new_stream(self) -> Any:
        return "copies"

    def new_event(self, *, timing: bool) -> Event:
        return NullEvent(self.calls)

    def wait(self, stream: Any, event: Event) -> None:
        self.calls["stream.wait_event"] += 1

    def on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        self.calls["stream context"] += 1
        return self._off

    def pin(self, nbytes: int) -> torch.Tensor | None:
        return self.allocate(nbytes)


@contextlib.contextmanager
def null_device() -> Iterator[NullDevice]:
    """While active, whoever swaps a loaded model gets this device, whatever device is named."""
    device = NullDevice()
    with mock.patch("blockswap.swap.entry.loaded_model.open_device", return_value=device):
        yield device
