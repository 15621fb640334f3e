"""ComfyUI-WanVideoWrapper: the first blocks travel, the last ones stay; nothing overlaps.

Read: kijai/ComfyUI-WanVideoWrapper, `wanvideo/modules/model.py`, `block_swap` and the loop in
`forward` (commits 721cd65 of 2025-03 and 0cf30c6). Before a swapped block runs, its tensors are
moved to the device one by one from pageable memory, and the host waits for each; after it, they
are moved back into new pageable memory (`non_blocking=True`, which a copy to pageable memory
cannot honour). Residents are all at the end. A prefetch on a stream of its own existed for some
months of 2025 and was taken out again.

Here the blocks counted are those really swapped, although the count asked for there is off by one.
"""

import torch

from benchmarks.peers.weights import hang, hang_on_device, tensors_of
from benchmarks.simulator import Rates
from benchmarks.workload import Case, ClockedModel


class WanVideoWrapper:
    """Blocking copies per tensor in, a copy back after use."""

    def __init__(self, model: ClockedModel, case: Case, _rates: Rates) -> None:
        self._blocks = list(model.blocks)
        self._swapped = case.streamed
        for block in self._blocks[self._swapped :]:
            hang_on_device(block)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        for number, block in enumerate(self._blocks):
            if number < self._swapped:
                hang(block, [tensor.to("sim") for tensor in tensors_of(block)])
            hidden = block(hidden)
            if number < self._swapped:
                hang(block, [tensor.to("cpu", non_blocking=True) for tensor in tensors_of(block)])
        return hidden

    def close(self) -> None:
        """Nothing runs beside the forward."""
