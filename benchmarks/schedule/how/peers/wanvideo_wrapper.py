"""ComfyUI-WanVideoWrapper: the first blocks travel, the last ones stay; nothing overlaps.

Read: kijai/ComfyUI-WanVideoWrapper, `wanvideo/modules/model.py`, `block_swap` and the loop in
`forward` (commits 721cd65 of 2025-03 and 0cf30c6). Before a swapped block runs, its tensors are
moved to the device one by one and the host waits for each; after it, they are moved back, although
nothing has changed them. With `use_non_blocking` (off by default) torch takes pinned memory for
what goes back, so that neither way is slowed down by pageable memory, and the host does not wait
for it; else memory is pageable both ways. Residents are all at the end. A prefetch on a stream of
its own existed for some months of 2025 and was taken out again.

Here the blocks counted are those really swapped, although the count asked for there is off by one.
"""

import torch

from benchmarks.schedule.how.model import ClockedModel
from benchmarks.schedule.how.peers.weights import hang, hang_on_device, tensors_of
from benchmarks.schedule.what import Case, Rates


class WanVideoWrapper:
    """Blocking copies per tensor in, a blocking copy back after use."""

    non_blocking = False

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
                hang(
                    block, [w.to("cpu", non_blocking=self.non_blocking) for w in tensors_of(block)]
                )
        return hidden

    def close(self) -> None:
        """Nothing runs beside the forward."""


class WanVideoWrapperNonBlocking(WanVideoWrapper):
    """The same with `use_non_blocking`: pinned, and the copy back is not waited for."""

    non_blocking = True
