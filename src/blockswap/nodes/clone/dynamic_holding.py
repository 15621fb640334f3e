"""`DynamicHolding`: blocks taken out of the host's dynamic VRAM, and the memory pinned for them.

The weights stay what they are for the host, mapped from their file; pinned copies of the streamed
blocks are ours, and counted where the host counts its own.
"""

from collections.abc import Callable
from typing import Any

import torch

from ...plan import SwapPlan
from ...swap import FileUnits, Hosted, Mapped, Swap, stream_units
from ..from_file.arrival import forget_patches
from ..host_code.block_methods import methods_of
from ..in_pieces.wan_pieces import WAN
from ..seams import host_dynamic
from .dynamic_patches import attach_patches
from .holding import Claim, Holding


class DynamicHolding(Holding):
    """The streamed blocks of a model whose weights the host brings to the device one by one."""

    def __init__(
        self, patcher: Any, claim: Claim, plan: SwapPlan, files: FileUnits | None = None
    ) -> None:
        super().__init__(patcher.model, claim, plan, files)
        self.pinned_bytes = 0
        self._aside: dict[torch.nn.Module, dict[str, Any]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._unwatch: Callable[[], None] | None = None

    def take(self, patcher: Any) -> None:
        """Takes the modules from the host: they lose their places, pins and patches there."""
        if not self.modules:
            return
        host_dynamic.give_up(patcher)
        self._aside = host_dynamic.put_aside(self.modules)
        if self.files is None:
            self._dtypes = host_dynamic.arriving_dtypes(patcher, self.modules)
        attach_patches(patcher, self.modules)

    def _start(self, root: torch.nn.Module, told: Callable[[], None]) -> Swap:
        if self.files is not None:
            swap = super()._start(root, told)
            self._count_pinned(self.plan.pinned_bytes)
            return swap
        pin_bytes = host_dynamic.pinnable_bytes(self.plan.streamed_bytes)
        return stream_units(
            root,
            self.plan,
            self.claim.args,
            device=self.claim.device,
            hosted=Hosted(told, WAN, methods_of),
            mapped=Mapped(self._dtypes, pin_bytes, self._count_pinned),
        )

    def _count_pinned(self, nbytes: int) -> None:
        self.pinned_bytes += nbytes
        host_dynamic.count_pinned(nbytes)

    def taken_off(self, patcher: Any) -> None:
        """Each clone that goes says so; only the one that the model is loaded for matters."""
        if self.is_held_for(patcher):
            self.park()

    def _owner_went(self) -> None:
        """Nobody is left who asked for it."""
        self.close()

    def park(self) -> None:
        """The host takes a clone off before it loads one, be it the same one.

        Whoever walks the model next, and is not the clone that goes on with it, finds it as it was.
        """
        model = self._model()
        if model is not None and not self.closed and self._unwatch is None:
            self._unwatch = host_dynamic.before_a_walk(model, self.close)

    def resume(self, owner: Any, node_id: str | None) -> None:
        """A clone with an equal claim goes on with what is there."""
        self._stop_watching()
        self.hold(owner, node_id)

    def _stop_watching(self) -> None:
        unwatch, self._unwatch = self._unwatch, None
        if unwatch is not None:
            unwatch()

    def close(self) -> None:
        """Gives the blocks back as they were, and the pinned copies to the system."""
        if self.closed:
            return
        self._stop_watching()
        super().close()
        if self.files is not None and self.pinned_bytes:
            self._count_pinned(-self.pinned_bytes)
        for module in self.modules:
            forget_patches(module)
        host_dynamic.put_back(self._aside)
        self._aside = {}
