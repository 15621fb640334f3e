"""What happens where pinning fails: copies through staging beyond the plan, and a note of it."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...store.landing import Landing
from ...units import format_bytes
from .parts import Parts
from .unit_store import UnitStore


def ensure_staging(parts: Parts, store: UnitStore, slab_bytes: int) -> None:
    """Makes staging for units up to `slab_bytes` where pinning failed against the plan."""
    if not store.pageable_bytes:
        return
    if parts.pool.add_staging(slab_bytes):
        parts.pool.sentences.append(
            f"pinning failed for {format_bytes(store.pageable_bytes)} of streamed blocks: their "
            f"copies go through {len(parts.pool.staging)} staging buffers"
        )


class PageableSource:
    """A unit in host memory that could not be pinned: reader threads copy it to staging."""

    read_bytes = 0

    def __init__(self, runs: Sequence[tuple[torch.Tensor, int]]) -> None:
        self._runs = list(runs)

    def pieces(self, landing: Landing) -> list[Callable[[], None]]:
        return [
            _HostCopy(memory.narrow(0, start - at, size), base + start)
            for memory, at in self._runs
            for start, size, base in landing.spans(at, memory.numel())
        ]

    def settle(self, landing: Landing) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class _HostCopy:
    memory: torch.Tensor
    address: int

    def __call__(self) -> None:
        torch.frombuffer(
            (ctypes.c_char * self.memory.numel()).from_address(self.address), dtype=torch.uint8
        ).copy_(self.memory)
