"""A forward of the wrapper pack's model that runs out of memory: who leaves, and when it fails.

The failed attempt's tensors go first; then blocks that the plan keeps on the device are streamed,
half of their bytes, then all. Where the user chose the blocks, or the forward has changed what the
next one reads (a feature cache, keys of earlier frames), there is one clear sentence instead.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import torch

from ...stream.device import open_device
from ...swap import Attempt
from ..seams import host

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
        attempt, count = Attempt(open_device(blocks.device)), 0
        while True:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if not host.is_out_of_memory(error):
                    raise
                count += 1
                attempt.failed(error)
                hopeless = _why_not(transformer, blocks, count)
                if hopeless is not None:
                    error.add_note(f"blockswap: {hopeless}")
                    raise
            # Here and not in the clause above, where the interpreter still holds the error.
            attempt.drop()
            said = "what it held was dropped"
            if count > 1:
                said = blocks.stream_more(everything=count == _MOST)
            blocks.tell(f"a forward ran out of memory: {said}, and it was run again")
            attempt.restore()

    vars(transformer)["_call_impl"] = calling
    undo.callback(_calls_as_before, transformer, calling)


def _calls_as_before(transformer: Any, calling: Callable[..., Any]) -> None:
    if vars(transformer).get("_call_impl") is calling:
        del vars(transformer)["_call_impl"]


def _why_not(transformer: Any, blocks: Movable, count: int) -> str | None:
    if any(getattr(transformer, name, False) for name in _CACHES) or any(
        getattr(block, "kv_cache", None) is not None for block in transformer.blocks
    ):
        return (
            "a forward with a feature cache or with keys of earlier frames is not run again, for "
            "the failed one may have written there: lower vram_budget, or take the cache off"
        )
    if count == 1:
        return None
    if count > _MOST or not blocks.can_stream_more():
        return "no block can leave the device any more: ask for more blocks, or for a smaller clip"
    return None
