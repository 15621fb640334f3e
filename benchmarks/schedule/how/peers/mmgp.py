"""mmgp: evenly spread residents and a prefetch of one, with the whole device waited for per block.

Read: deepbeepmeep/mmgp at 04b8d1f (2026-07, 3.7.10), `src/mmgp/offload.py`, `gpu_load_blocks`,
`gpu_unload_blocks` and `tune_preloading`. On entering a streamed block the host drops the one
before, synchronises the whole device, and starts the copies of the next streamed block (in a ring)
from pinned memory on a transfer stream, each tensor into newly allocated device memory.
"""

import torch

from benchmarks.schedule.how.model import ClockedModel
from benchmarks.schedule.how.peers.weights import hang, hang_on_device, hang_pinned
from benchmarks.schedule.what import Case, Rates


class Mmgp:
    """Prefetch of one behind a device-wide synchronisation."""

    def __init__(self, model: ClockedModel, case: Case, _rates: Rates) -> None:
        self._blocks = list(model.blocks)
        residents = _preloaded(case)
        streamed = [n for n in range(case.blocks) if n not in residents]
        for number in residents:
            hang_on_device(self._blocks[number])
        self._host = {number: hang_pinned(self._blocks[number]) for number in streamed}
        self._next = dict(zip(streamed, [*streamed[1:], streamed[0]], strict=True))
        self._transfer = torch.Stream("sim")
        self._loaded: int | None = None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        for number, block in enumerate(self._blocks):
            if number in self._next:
                self._enter(number)
            hidden = block(hidden)
        return hidden

    def _enter(self, number: int) -> None:
        before = self._loaded
        if before is not None:
            hang(self._blocks[before], self._host[before])
        if before is None or self._next[before] != number:
            self._copy(number, torch.accelerator.current_stream())
        torch.accelerator.synchronize()
        if self._next[number] != number:
            self._copy(self._next[number], self._transfer)
        self._loaded = number

    def _copy(self, number: int, stream: torch.Stream) -> None:
        with stream:
            copies = [weight.to("sim", non_blocking=True) for weight in self._host[number]]
        hang(self._blocks[number], copies)

    def close(self) -> None:
        """Nothing runs beside the forward."""


def _preloaded(case: Case) -> set[int]:
    """The residents as mmgp spreads them: one after each stretch of streamed blocks."""
    if not case.residents:
        return set()
    between = case.streamed / case.residents
    kept, cursor = set(), between
    for number in range(case.blocks):
        if number >= cursor:
            kept.add(number)
            cursor += 1 + between
    return kept
