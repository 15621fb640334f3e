"""A resident's slab on the device: how it is filled, who waits for it, when it may be freed.

A unit becomes resident while it is visited: what its slot (or the decode buffer) holds is copied
on the compute stream into a slab of its own, so promotion has no transfer, no wait and no decoding
of its own. It ceases to be one between two visits, and its slab goes back to the allocator.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...store.leaves import leaf_tensors
from ...store.places import Place
from ...store.traces import Traces
from ..device import Device, Event

# A place, what hangs there while the unit is resident, and what hung there before.
Entry = tuple[Place, torch.Tensor, torch.Tensor]


class Resident:
    """A slab on the device and the tensors over it. `filled` says that it holds the unit's bytes.

    Made on the current stream, whose memory the slab is: a caching allocator hands it out again in
    the order of that stream, so every other stream that used it is named to the allocator.
    """

    __slots__ = ("_device", "_entries", "_home", "_ordered", "_slab", "_traces", "_users",
                 "_written_on", "filled")  # fmt: skip

    def __init__(self, device: Device, slab: torch.Tensor, entries: Sequence[Entry]) -> None:
        self._device = device
        self._slab: torch.Tensor | None = slab
        self._entries = tuple(entries)
        self._traces: tuple[Traces, ...] = ()
        self._home = self._written_on = device.current_stream()
        self._ordered: list[Any] = [self._home]  # streams that come after what filled the slab
        self._users: list[Any] = [self._home]
        self.filled = False

    def fill(self, stream: Any, event: Event) -> None:
        """Copies what hangs in the model now, on `stream`, the current one.

        An interrupted fill is simply made again.
        """
        if self._written_on != stream:
            # The memory is fresh on its own stream; an earlier, interrupted fill was on that one.
            event.record(self._written_on)
            self._device.wait(stream, event)
            self._users.append(stream)
            self._written_on = stream
        self._ordered = [stream]
        hanging = [place.table[place.name] for place, _, _ in self._distinct()]
        self.load([leaf for tensor in hanging for _, leaf in leaf_tensors(tensor)])

    def load(self, sources: Sequence[torch.Tensor], *, copies: bool = True) -> None:
        """Copies the unit's leaves, in order, into the slab on the current stream.

        Without `copies` another process does it, which has the same memory.
        """
        values = [value for _, value, _ in self._distinct()]
        targets = [leaf for value in values for _, leaf in leaf_tensors(value)]
        for target, source in zip(targets, sources, strict=True):
            if copies:
                target.copy_(source)
        self._traces = tuple(Traces([value]) for _, value, _ in self._entries)
        self.filled = True

    def read_on(self, stream: Any, event: Event) -> None:
        """The unit runs on `stream` from here on: that comes after what filled the slab."""
        if stream not in self._ordered:
            event.record(self._written_on)
            self._device.wait(stream, event)
            self._users.append(stream)
            self._ordered.append(stream)

    def hang(self) -> None:
        """Hangs the resident tensors in the model; may be repeated."""
        for place, value, _ in self._entries:
            place.table[place.name] = value

    def untouched(self) -> bool:
        """Whether the model still has what was hung there, unchanged: else it must stay."""
        return all(
            place.table.get(place.name) is value and not traces.changed()
            for (place, value, _), traces in zip(self._entries, self._traces, strict=True)
        )

    def take_down(self) -> None:
        """Hangs back what was there before, and lets go of the slab; may be repeated.

        What other code hung in its place meanwhile stays. Work enqueued so far may still read it.
        """
        self._warn_of_changes()
        for place, value, before in self._entries:
            if place.table.get(place.name) is value:
                place.table[place.name] = before
        if self._slab is not None:
            for stream in self._users:
                if stream != self._home:
                    # The allocator reuses the slab in the order of its home stream alone.
                    self._device.used_on(self._slab, stream)
        # Traces know views of the slab: they must not keep it.
        self._entries, self._traces = (), ()
        self._slab = None

    def _warn_of_changes(self) -> None:
        # No entries are left the second time, and no traces before the slab is filled.
        for (place, _, before), traces in zip(self._entries, self._traces, strict=False):
            if traces.changed() and before.device.type != "meta":
                warnings.warn(
                    f"{place.label} was changed on the device while the model was swapped, and "
                    "weights are not copied back: the change is lost, make it before swapping",
                    stacklevel=2,
                )

    def _distinct(self) -> Iterator[Entry]:
        """One entry for each tensor: tied tensors hang in several places."""
        seen: set[int] = set()
        for entry in self._entries:
            if id(entry[1]) not in seen:
                seen.add(id(entry[1]))
                yield entry
