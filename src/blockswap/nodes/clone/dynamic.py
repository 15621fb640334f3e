"""What the host does differently for a clone with block swap where dynamic VRAM has the model.

The host's own loading prepares everything but the streamed blocks, which it does not see:

    load, partially_load   the streamed blocks are taken from the host, the rest is prepared as
                           ever, then the swap is opened
    _load_list             does not come by the streamed blocks
    unpatch_model          closes the swap before the host gives up its own
    partially_unload       the host frees its own first; if that is not enough, the swap is closed
    partially_unload_ram   pinned copies of a model that is not running are given back
    loaded_size, ...       count what is ours beside what is the host's
"""

from typing import Any

from ...swap import Mapped
from ..seams import host_dynamic
from ..seams.lost_patches import none_lost
from .dynamic_holding import DynamicHolding
from .holding import Holding, holding_of
from .overrides import Overrides, files_of, release, transformer_of
from .room import granted_of


class DynamicOverrides(Overrides):
    """Stands in front of the methods of one dynamic patcher, which it does not keep alive."""

    names = host_dynamic.OVERRIDDEN

    def model_size(self) -> int:
        """The bytes to find room for; while the host loads, all that it may ever hold."""
        holding = holding_of(self._patcher.model)
        if holding is not None and holding.loading:
            return self._whole
        return super().model_size()

    def loaded_size(self) -> int:
        """Device memory in use, slots included."""
        holding = holding_of(self._patcher.model)
        own = 0 if holding is None else holding.own_bytes
        return int(self._host.loaded_size(self._patcher)) + own

    def loaded_ram_size(self) -> int:
        """Host memory that the model's pinned copies take, ours included."""
        return int(self._host.loaded_ram_size(self._patcher)) + self._pinned_bytes()

    def pinned_memory_size(self) -> int:
        """Pinned host memory, ours included."""
        return int(self._host.pinned_memory_size(self._patcher)) + self._pinned_bytes()

    def _load_list(self, *args: Any, **kwargs: Any) -> list[Any]:
        patcher = self._patcher
        holding = holding_of(patcher.model)
        with host_dynamic.hidden(patcher, frozenset() if holding is None else holding.modules):
            entries: list[Any] = self._host._load_list(patcher, *args, **kwargs)
        return entries

    def partially_load(self, device_to: Any, *args: Any, **kwargs: Any) -> Any:
        """Before each sampling the host prepares the model anew, by `load`."""
        self._current(device_to)
        return self._host.partially_load(self._patcher, device_to, *args, **kwargs)

    def load(self, device_to: Any = None, *args: Any, **kwargs: Any) -> Any:
        patcher = self._patcher
        try:
            holding = self._current(device_to) or self._take(device_to, 0)
            with holding.at_work(), none_lost():
                result = self._host.load(patcher, device_to, *args, **kwargs)
            holding.open(transformer_of(patcher))
        except BaseException:
            release(patcher.model)
            raise
        return result

    def _current(self, device: Any) -> Holding | None:
        """The holding to go on with; one for other arguments is closed."""
        holding = holding_of(self._patcher.model)
        if holding is None:
            return None
        if holding.claim != self._claim(device):
            holding.close()
            return None
        holding.resume(self._patcher, self._wish.node_id)
        return holding

    def _take(self, device: Any, granted: int) -> Holding:
        patcher = self._patcher
        plan = self._plan(device, self._granted(device))
        files = files_of(patcher.model)
        holding = DynamicHolding(patcher, self._claim(device), plan, files)
        holding.hold(patcher, self._wish.node_id)
        holding.take(patcher)
        return holding

    def _granted(self, device: Any) -> int:
        return granted_of(host_dynamic.free_bytes(self._patcher, device))

    def _mapped(self, root: Any) -> Mapped:
        dtypes = host_dynamic.arriving_dtypes(self._patcher, frozenset(root.modules()))
        return Mapped(dtypes, 0, lambda _: None)

    def _pinned_bytes(self) -> int:
        holding = holding_of(self._patcher.model)
        return holding.pinned_bytes if isinstance(holding, DynamicHolding) else 0

    def _runs(self) -> bool:
        return host_dynamic.is_active(self._patcher)

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, **kwargs: Any) -> Any:
        freed = self._host.partially_unload(self._patcher, device_to, memory_to_free, **kwargs)
        holding = holding_of(self._patcher.model)
        if freed >= memory_to_free or holding is None or self._runs():
            return freed
        freed += holding.own_bytes
        holding.close()
        return freed

    def partially_unload_ram(self, ram_to_unload: float, *args: Any, **kwargs: Any) -> Any:
        patcher = self._patcher
        if patcher is None:
            return 0  # it is being collected: its model's memory goes with the model
        freed = self._host.partially_unload_ram(patcher, ram_to_unload, *args, **kwargs)
        subsets = kwargs.get("subsets", args[0] if args else None)
        weights = subsets is None or host_dynamic.are_weights(subsets)
        if freed >= ram_to_unload or not weights or self._runs():
            return freed
        pinned = self._pinned_bytes()
        if pinned:
            release(patcher.model)
        return freed + pinned
