"""The ranks of one host that fill slots together: their gathers, the wait for them, its sentence.

On an accelerator they go over a group of our own, of the backend that torch has for the device
(nccl on CUDA): nothing but gathers runs on it. Before each of them the ranks agree in memory that
they share (`ledger`), so that none is called which another rank does not call, too.
"""

import contextlib
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist

from ..errors import StateError
from .exchange import Exchange, GroupExchange, SharedExchange, exchange_bytes
from .gather_groups import free_group, groups_here
from .group import Ranks
from .ledger import DIFFERS, LEFT, Ledger, ledger_bytes, wait_for
from .segment import Segment, make_segment, map_segment

# How long a rank waits for the others in a forward before it brings its blocks alone.
GATHER_SECONDS = 60.0

Tell = Callable[[str], None]


class CompanionRanks:
    """See `stream.pool.gathers.Companions`. `tell` gets the sentence when ranks part."""

    def __init__(self, ranks: Ranks, exchange: Exchange, ledger: Ledger, seconds: float) -> None:
        self.part, self.parts = ledger.position, ledger.ranks
        self.tell: Tell = _nobody
        self._names = ranks.ranks
        self._exchange = exchange
        self._ledger = ledger
        self._seconds = seconds
        self._told = self._closed = False

    def post(self, entry: int, what: int) -> None:
        """See `Companions`; what follows, too."""
        self._ledger.post(entry, what)

    def together(self, entry: int, name: str) -> bool:
        missing = wait_for(self._ledger, entry, self._seconds)
        if missing:
            together = self._ledger.part(entry, missing[0], 0)
        else:
            together = bool(self._ledger.together(entry))
        if not together:
            self._tell(name)
        return together

    def withdraw(self, entry: int, name: str) -> None:
        # Where a rank that was stopped has the lock, the others miss this one in vain for a while.
        with contextlib.suppress(StateError):
            self._ledger.withdraw(entry)
        self._tell(name)

    def gather(self, whole: torch.Tensor, part: torch.Tensor, name: str) -> None:
        try:
            self._exchange.gather(whole, part)
        except RuntimeError as error:
            self._exchange.failed()
            others = [r for p, r in enumerate(self._names) if p != self.part]
            ended = [r for p, r in enumerate(self._names) if self._ledger.has_ended(p)]
            who = f"rank {ended[0]} has ended" if ended else f"ranks {others} did not answer"
            raise StateError(
                f"rank {self._names[self.part]} was to gather {name} and {who} "
                f"({str(error).partition(chr(10))[0]}): see what that rank says, then start all of "
                "them again"
            ) from error

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._ledger.close()
            self._exchange.close()

    def _tell(self, name: str) -> None:
        """Once: from here on every rank copies, or reads, each block itself."""
        parting = self._ledger.parting()
        if parting is None or self._told:
            return
        self._told = True
        rank, me = self._names[parting.position], self._names[self.part]
        what = {
            DIFFERS: f"rank {rank} brings another block than {name}, which rank {self._names[0]} "
            "brings",
            LEFT: f"rank {rank} no longer brings its part of {name}",
        }.get(
            parting.why,
            f"rank {rank} has ended and does not bring its part of {name}"
            if self._ledger.has_ended(parting.position)
            else f"rank {rank} did not bring its part of {name} within {self._seconds:g} s",
        )
        sentence = f"{what}: from here on each rank brings all of every block (rank {me})"
        self.tell(sentence)
        warnings.warn(sentence, stacklevel=2)


def make_companions(ranks: Ranks, device: torch.device, most_bytes: int) -> CompanionRanks | None:
    """`ranks` of one host as companions; None where torch has no collectives for `device`.

    Every one of them must call it. `most_bytes`: the largest slab that is gathered.
    """
    backend = None if device.type == "cpu" else _backend_of(device)
    groups = None if backend is None else groups_here(ranks, backend, GATHER_SECONDS)
    told = ranks.agree(
        "find how blocks can be gathered", (device.type, backend, most_bytes, groups)
    )
    if (backend is None and device.type != "cpu") or len({how[:3] for how in told.values()}) > 1:
        return None
    position, count = ranks.ranks.index(ranks.rank), len(ranks.ranks)
    ledger = Ledger(_common(ranks, ledger_bytes(count), "gathers"), position, count)
    if backend is None:
        segment = _common(ranks, exchange_bytes(most_bytes), "parts")

        def ended() -> list[int]:
            return [p for p in range(count) if p != position and ledger.has_ended(p)]

        shared = SharedExchange(segment, position, count, GATHER_SECONDS, ended)
        return CompanionRanks(ranks, shared, ledger, GATHER_SECONDS)
    there = {rank: how[3] for rank, how in told.items()}
    group = free_group(ranks, backend, GATHER_SECONDS, there)
    return CompanionRanks(ranks, GroupExchange(group), ledger, GATHER_SECONDS)


def _common(ranks: Ranks, nbytes: int, name: str) -> Segment:
    """Memory of the ranks of a host, whose file each of them may lock."""
    maker = ranks.ranks[0]
    made = None
    with ranks.together("make the memory in which gathers are agreed on"):
        if ranks.rank == maker:
            made = make_segment(nbytes, name)
    addresses = ranks.agree("find that memory", made.address if made else None)
    with ranks.together("map that memory"):
        return made or map_segment(addresses[maker], keep=True)


def _backend_of(device: torch.device) -> str | None:
    try:
        return str(dist.get_default_backend_for_device(device))
    except (ValueError, KeyError):
        return None


def _nobody(sentence: str) -> None:
    """Nobody to tell yet."""
