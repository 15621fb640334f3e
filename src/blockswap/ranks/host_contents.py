"""Whether the ranks of several hosts hold the same bytes, by the checksums of what was read anyway.

Ranks of one host share memory or open one file. Those of two have files, or weights, of their own,
and where these differ every rank would compute on without a word.
"""

import json
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist

from ..errors import ModelError
from ..store.file_io import memory_at
from .group import Ranks

_PART_BYTES = 32 << 20  # a unit is added up by several threads


def sum_of(memories: Iterable[torch.Tensor]) -> int:
    """A checksum of the bytes of all of them, in their order; each is uint8 `[n]`."""
    parts = [part for memory in memories for part in torch.split(memory, _PART_BYTES)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib gives the interpreter's lock up
        return zlib.crc32(repr(list(pool.map(_sum_of_part, parts))).encode())


def _sum_of_part(memory: torch.Tensor) -> int:
    return zlib.crc32(memory_at(memory.data_ptr(), memory.numel())) if memory.numel() else 0


def spans_hosts(ranks: Ranks) -> bool:
    """Whether there is anything to compare."""
    return len(set(ranks.hosts)) > 1


def refuse_other_contents(ranks: Ranks, sums: Mapping[str, int] | None) -> None:
    """Raises ModelError, on all ranks or on none, where two hosts have other bytes of one name.

    `sums`: by name, of the rank that has read for its host; None on the others. Every rank must
    call it.
    """
    told = {rank: said for rank, said in ranks.agree("compare contents", sums).items() if said}
    with ranks.together("compare contents"):
        first = min(told, default=0)
        for rank, other in told.items():
            _refuse_other(first, told[first], rank, other)


def _refuse_other(me: int, mine: Mapping[str, int], rank: int, other: Mapping[str, int]) -> None:
    for name in sorted(mine.keys() & other.keys()):
        if mine[name] != other[name]:
            part = name.partition("|")[0] or "the part outside the blocks"
            raise ModelError(
                f"{part} has other values on the host of rank {rank} than on that of rank {me}: "
                "give every host the same file (sha256sum tells), or load the same weights"
            )


class HostsWatch:
    """Compares what forwards have read of files, once it is read, with what others have.

    A rank leaves its sums in torch's store, where those of other hosts find them after a later
    forward: nobody waits for anybody, and nothing is read for it.
    """

    def __init__(
        self, ranks: Ranks, sums: Callable[[], Mapping[str, int]], spoil: Callable[[str], None]
    ) -> None:
        """Every rank must call it. `spoil` makes the model refuse from then on."""
        self._ranks, self._sums, self._spoil = ranks, sums, spoil
        here = ranks.neighbours
        self._store = dist.distributed_c10d._get_default_store()
        self._name = ranks.agree("watch contents", uuid.uuid4().hex)[ranks.ranks[0]]
        self._told: Mapping[str, int] = {}
        self._refusal: str | None = None
        self._ended = False
        self._heard = {rank: dict[str, int]() for rank in ranks.ranks if rank not in here}

    def look(self) -> None:
        """After each forward. Raises ModelError where another host has read other bytes."""
        if self._refusal is None and not self._ended:
            try:
                self._compare(self._sums())
            except RuntimeError:  # the store ends with the process that keeps it
                self._ended = True
        if self._refusal is not None:
            self._spoil(self._refusal)
            raise ModelError(self._refusal)

    def _compare(self, mine: Mapping[str, int]) -> None:
        if mine.keys() != self._told.keys():
            self._store.set(self._key(self._ranks.rank), json.dumps(mine))
            self._told = mine
        if self._store.check([self._key("refusal")]):  # each rank sees its own part alone
            self._refusal = self._store.get(self._key("refusal")).decode()
            return
        try:
            for rank, heard in self._heard.items():
                if not mine.keys() <= heard.keys() and self._store.check([self._key(rank)]):
                    heard.update(json.loads(self._store.get(self._key(rank))))
                _refuse_other(self._ranks.rank, mine, rank, heard)
        except ModelError as error:
            self._refusal = str(error)
            self._store.set(self._key("refusal"), self._refusal)

    @property
    def sentence(self) -> str:
        """How far the files are compared by now."""
        if self._refusal is not None:
            return self._refusal
        mine = self._sums().keys()
        compared = mine & set[str]().union(*self._heard.values())
        ended = "; the store of the first rank has ended, and no more is compared"
        return (
            f"the files of other hosts hold the same in {len(compared)} of {len(mine)} parts of "
            "blocks that were read, and in every tensor where it was looked at"
        ) + (ended if self._ended else "")

    def _key(self, of: int | str) -> str:
        return f"blockswap/contents/{self._name}/{of}"
