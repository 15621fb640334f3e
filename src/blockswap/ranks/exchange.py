"""How parts of a block get from rank to rank: by torch's collectives, or through shared memory.

    GroupExchange    the device's own collectives, enqueued on the current stream
    SharedExchange   on the CPU, where there is no link: each rank lays its part in memory that all
                     see, waits until all have, and takes the others' from there

    shared memory    |gathers that rank 0 has laid its part for|rank 1's ...|
                     |part of rank 0|part of rank 1|...|   for gathers 0, 2, 4 ...
                     |part of rank 0|part of rank 1|...|   for gathers 1, 3, 5 ...

Two rows are enough: who lays a part for gather 2 has seen all lay theirs for gather 1, which each
does only after it has taken what it needs of gather 0.
"""

import time
from collections.abc import Callable
from typing import Protocol

import torch

from ..plan.inputs.unit_sizes import EXCHANGED_SLABS
from .gather_groups import GatherGroup
from .segment import Segment
from .waiting import wait_until

PAGE = 4096


class Exchange(Protocol):
    """How the ranks of a host give each other their parts."""

    def gather(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        """Fills `whole` with all ranks' parts, of which this one's lies in it already.

        Raises RuntimeError where another rank did not come.
        """
        ...

    def failed(self) -> None:
        """A gather has failed: none can come after it."""
        ...

    def close(self) -> None:
        """No gather comes any more."""
        ...


class GroupExchange:
    """Over a group of torch.distributed."""

    def __init__(self, group: GatherGroup) -> None:
        self._group = group

    def gather(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        import torch.distributed as dist

        # torch 2.13 renames it and warns of the old name.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(whole, part, group=self._group.torchs)

    def failed(self) -> None:
        self._group.forget()

    def close(self) -> None:
        self._group.close()


def exchange_bytes(most_bytes: int) -> int:
    """The size of the shared memory for slabs of at most `most_bytes`."""
    return PAGE + EXCHANGED_SLABS * most_bytes


class SharedExchange:
    """Through shared memory of `exchange_bytes`, all zero at first.

    `ended` names the ranks, by position, that have closed or are no more.
    """

    def __init__(
        self,
        segment: Segment,
        position: int,
        ranks: int,
        seconds: float,
        ended: Callable[[], list[int]],
    ) -> None:
        self._segment, self._position, self._ranks = segment, position, ranks
        self._seconds, self._ended = seconds, ended
        self._laid = memoryview(segment.mapped)[: 8 * ranks].cast("q")
        rest = segment.memory.narrow(0, PAGE, segment.address.nbytes - PAGE)
        self._rows = rest.view(EXCHANGED_SLABS, -1)
        self._done = 0

    def gather(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        number, size, here = self._done, part.numel(), self._position
        row = self._rows[number % EXCHANGED_SLABS]
        row.narrow(0, here * size, size).copy_(part)
        with self._segment.locked():  # the system call also orders the bytes before the number
            self._laid[here] = number + 1
        self._wait(number + 1)
        for other in range(self._ranks):
            if other != here:
                whole.narrow(0, other * size, size).copy_(row.narrow(0, other * size, size))
        self._done = number + 1

    def _wait(self, number: int) -> None:
        end = time.monotonic() + self._seconds
        missing: list[int] = []

        def all_laid() -> bool:
            with self._segment.locked():
                missing[:] = [p for p in range(self._ranks) if self._laid[p] < number]
            if missing and time.monotonic() > end:
                raise RuntimeError(f"its part was not there within {self._seconds:g} s")
            return not missing

        def look() -> None:
            if set(missing) & set(self._ended()):
                raise RuntimeError("it ended before its part was there")

        wait_until(all_laid, look=look)

    def failed(self) -> None:
        """Others that wait for this rank's next part wait in vain, and not for ever."""

    def close(self) -> None:
        self._laid.release()
        self._segment.stop_offering()
