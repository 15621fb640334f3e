"""When a running plan is corrected: after forward 1, at once if too full, after 8 with room.

The allocator's peak is a figure of the host, exact when a forward has been enqueued, so nothing is
waited for. Memory that leaves goes back in the order of its stream. What the driver may wait for
by itself is new memory: pinning a unit's bytes when it first leaves, and the slab of one that
comes to stay.
"""

from collections import deque
from dataclasses import replace

from ...plan.correction.change_sentences import correction_sentence
from ...plan.correction.promotion import Correction, Use, correct
from ...stream.device import Device
from ..assembly.pool_members import Sharing
from .freedom import TENTHS_USED
from .handle import Swap
from .residency import Residency

# Residents are added again only when this many forwards in a row have left the room for them: a
# step may be several forwards of different sizes, and moving a unit to and fro costs its transfer.
PATIENCE_FORWARDS = 8


class Corrector:
    """Measures whole forwards of one swap and corrects its residents between them.

    Weights are those of all swaps that share its pool: they lie on the device beside its own.
    """

    def __init__(self, swap: Swap, residency: Residency, device: Device, sharing: Sharing) -> None:
        self._swap = swap
        self._residency = residency
        self._device = device
        self._limits = residency.limits
        self._sharing = sharing
        self.settle()
        self._reading: tuple[int, int] | None = None  # forward, bytes of its activations
        self._recent: deque[int] = deque(maxlen=PATIENCE_FORWARDS)
        self._first = True

    def settle(self) -> None:
        """What others hold on the device now is neither weights nor activations of these models."""
        self._foreign_bytes = self._device.allocated_bytes() - self._sharing.device_bytes()

    def before_forward(self, number: int) -> None:
        """Corrects by what the last forward used, then measures anew."""
        self._residency.refresh_if_changed()
        reading, self._reading = self._reading, None
        if self._limits.total_bytes is None:
            return
        if reading is not None and reading[0] < number:
            self._correct(*reading)
        self._device.reset_peak()

    def after_forward(self, number: int) -> None:
        """The forward is enqueued to its end, so its peak is known."""
        peak = self._device.peak_bytes()
        if peak is not None and self._limits.total_bytes is not None:
            held = self._foreign_bytes + self._sharing.device_bytes()
            self._reading = (number, peak - held)

    def out_of_memory(self) -> None:
        """There is less than was thought: what is free now is the limit from here on."""
        free = self._device.free_bytes()
        self._reading = None
        self._recent.clear()
        self._first = False
        # The failed attempt ran with more residents: its peak says nothing of the next one's.
        self._device.reset_peak()
        if free is None:
            return
        there = (free + self._device.allocated_bytes() - self._foreign_bytes) * TENTHS_USED // 10
        known = self._limits.total_bytes
        total = there if known is None else min(there, known)
        self._limits = replace(self._limits, total_bytes=total)

    def _correct(self, number: int, activations: int) -> None:
        self._recent.append(activations)
        found = correct(self._residency.units(), self._use(activations), self._limits)
        if found.demote:
            done = self._residency.demote(found.demote)
            self._tell(number, Correction(demote=done, room_bytes=found.room_bytes))
        elif self._first or len(self._recent) == PATIENCE_FORWARDS:
            use = self._use(max(self._recent))
            found = correct(self._residency.units(), use, self._limits)
            done = self._residency.promote(found.promote)
            self._tell(number, Correction(promote=done, room_bytes=found.room_bytes))
        self._first = False

    def _use(self, activations: int) -> Use:
        weights = self._sharing.device_bytes()
        return Use(weights, weights + activations, self._residency.entry_bytes)

    def _tell(self, number: int, done: Correction) -> None:
        if done:
            self._swap.tell(correction_sentence(number, done, self._swap.plan))
