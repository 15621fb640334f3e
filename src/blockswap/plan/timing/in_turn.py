"""Forwards of which nothing is read: slots are taken in turn, so two clocks say all there is.

A search looks at thousands of choices. Where streamed units come from RAM, the copy that follows
a block's run always goes to the slot that the block has left; the general simulation finds the
same numbers, to the last bit, by asking what every slot, buffer and read is doing.
"""

from collections import deque
from collections.abc import Sequence


class InTurn:
    """The compute and the copy stream of such forwards, one after the other without a pause.

    `stages` are the units of a forward: seconds of compute, and of the copy for a streamed one,
    else None. More units than `slots` are streamed, and as many copies run ahead as slots allow.
    """

    def __init__(
        self, stages: Sequence[tuple[float, float | None]], *, slots: int, rest_seconds: float
    ) -> None:
        self._stages = stages
        self._rest_seconds = rest_seconds
        self._copy_seconds = [copy for _, copy in stages if copy is not None]
        assert 0 < slots < len(self._copy_seconds), "each slot is used again in every forward"
        self._copies = 0.0
        self._arrivals: deque[float] = deque()
        self.now = 0.0  # when the work so far ends on the device
        self.exposed = 0.0
        for copy in self._copy_seconds[:slots]:
            self._copies += copy
            self._arrivals.append(self._copies)
        self._next = slots

    def forward(self) -> None:
        """When a streamed unit has run, the next copy goes to the slot that it leaves."""
        now, copies, exposed = self.now + self._rest_seconds, self._copies, self.exposed
        arrivals, ahead, at = self._arrivals, self._copy_seconds, self._next
        for seconds, copy in self._stages:
            if copy is not None:
                arrived = arrivals.popleft()
                if arrived > now:
                    exposed += arrived - now
                    now = arrived
                at = at if at < len(ahead) else 0
                copies = max(copies, now + seconds) + ahead[at]
                arrivals.append(copies)
                at += 1
            now += seconds
        self.now, self._copies, self.exposed, self._next = now, copies, exposed, at
