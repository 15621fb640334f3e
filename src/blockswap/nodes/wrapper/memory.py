"""A forward of the wrapper pack's model that runs out of memory: who leaves, and when it fails.

The failed attempt's tensors go first; then blocks that the plan keeps on the device are streamed,
half of their bytes, then all. Where the user chose the blocks, or the forward has changed what the
next one reads (a feature cache, keys of earlier frames), there is one clear sentence instead.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

import torch

from ..runs.run_again import RunAgain

_MOST = 3  # failures after which it is run again: dropped, half of what stays, all of it
_CACHES = ("enable_teacache", "enable_magcache", "enable_easycache")


class Movable(Protocol):
    """What has the blocks."""

    device: torch.device

    def can_stream_more(self) -> bool: ...

    def stream_more(self, *, everything: bool) -> str:
        """Opens the swap anew with fewer blocks that stay; says what has left."""

    def tell(self, sentence: str) -> None: ...


def survive(undo: ExitStack, transformer: Any, blocks: Movable) -> None:
    """Has calls of `transformer` run again when they run out of memory; `undo` ends that."""
    call = type(transformer)._call_impl.__get__(transformer)

    def calling(*args: Any, **kwargs: Any) -> Any:
        return _Called(transformer, blocks).run(partial(call, *args, **kwargs))

    vars(transformer)["_call_impl"] = calling
    undo.callback(_calls_as_before, transformer, calling)


def _calls_as_before(transformer: Any, calling: Callable[..., Any]) -> None:
    if vars(transformer).get("_call_impl") is calling:
        del vars(transformer)["_call_impl"]


class _Called(RunAgain):
    """One call of the transformer."""

    def __init__(self, transformer: Any, blocks: Movable) -> None:
        super().__init__(blocks.device)
        self._transformer, self._blocks = transformer, blocks

    def why_not(self) -> str | None:
        if _writes(self._transformer):
            return (
                "blockswap: a forward with a feature cache or with keys of earlier frames is not "
                "run again, for the failed one may have written there: lower vram_budget, or take "
                "the cache off"
            )
        if self.count == 1 or (self.count <= _MOST and self._blocks.can_stream_more()):
            return None
        return (
            "blockswap: no block can leave the device any more: ask for more blocks, or for a "
            "smaller clip"
        )

    def make_room(self) -> str:
        if self.count == 1:
            return "what it held was dropped"
        return self._blocks.stream_more(everything=self.count == _MOST)

    def tell(self, left: str) -> None:
        self._blocks.tell(f"a forward ran out of memory: {left}, and it was run again")


def _writes(transformer: Any) -> bool:
    """Whether a forward changes what the next one reads."""
    cached = any(getattr(transformer, name, False) for name in _CACHES)
    return cached or any(getattr(b, "kv_cache", None) is not None for b in transformer.blocks)
