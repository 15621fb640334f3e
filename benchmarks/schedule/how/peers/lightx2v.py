"""LightX2V: two buffers and three streams, and the host waits for copy and compute every block.

Read: ModelTC/LightX2V at f8aee98 (2026-08), `lightx2v/common/offload/manager.py`
(`WeightAsyncStreamManager`) and `lightx2v/models/networks/wan/infer/offload/transformer_infer.py`
(`infer_with_blocks_offload`). While block k computes from buffer 0 on the compute stream, block
k + 1 (after the last the first) is copied tensor by tensor from pinned memory into buffer 1 on the
load stream; then the host synchronises both streams and the buffers change places. There are no
residents: every block travels in every forward.
"""

import torch

from benchmarks.schedule.how.model import ClockedModel
from benchmarks.schedule.how.peers.weights import hang, hang_pinned
from benchmarks.schedule.what import Case, Rates


class LightX2V:
    """Double buffering with a host synchronisation of both streams per block."""

    def __init__(self, model: ClockedModel, _case: Case, _rates: Rates) -> None:
        self._blocks = list(model.blocks)
        self._host = [hang_pinned(block) for block in self._blocks]
        self._init, self._load, self._compute = (torch.Stream("sim") for _ in range(3))
        self._buffers = [[torch.empty_like(w, device="sim") for w in self._host[0]] for _ in "01"]
        torch.accelerator.synchronize()
        self._first_buffer_is_empty = True

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        for number, block in enumerate(self._blocks):
            if self._first_buffer_is_empty:
                self._fill(self._buffers[0], 0, self._init)
                self._init.synchronize()
                self._first_buffer_is_empty = False
            self._fill(self._buffers[1], (number + 1) % len(self._blocks), self._load)
            hang(block, self._buffers[0])
            with self._compute:
                hidden = block(hidden)
            self._load.synchronize()
            self._compute.synchronize()
            self._buffers.reverse()
        return hidden

    def _fill(self, buffer: list[torch.Tensor], number: int, stream: torch.Stream) -> None:
        with stream:
            for target, source in zip(buffer, self._host[number], strict=True):
                target.copy_(source, non_blocking=True)

    def close(self) -> None:
        """Nothing runs beside the forward."""
