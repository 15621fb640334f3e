"""Stands in front of three functions of the wrapper pack, through which every run of it goes.

    load_weights          weights are about to be replaced: an open swap gives the blocks back
    init_blockswap        just before the first forward: for a clone of ours the swap is opened
    offload_transformer   the run is over, failed or interrupted: the swap is closed

A clone of ours is known by the counts in its arguments (`Count`), which the pack carries from the
clone to these functions. For any other clone they do what they did, after a swap that is still
open has been closed.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

from ..runs.wish import Wish
from .names import FUNCTIONS, INIT, LOAD, OFFLOAD, Pack
from .takeover import Takeover, takeover_of


class Count(int):
    """A count for the pack, and whose wish is behind it."""

    wish: Wish

    def __new__(cls, value: int, wish: Wish) -> "Count":
        made = super().__new__(cls, value)
        made.wish = wish
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> "Count":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)  # in another process nobody has this wish


_ours: set[Callable[..., Any]] = set()  # what stands in front, in all versions that are loaded


def wish_in(args: Any) -> Wish | None:
    """The wish in arguments of the pack, if they are ours."""
    count = args.get("blocks_to_swap") if isinstance(args, dict) else None
    return count.wish if isinstance(count, Count) else None


def install(pack: Pack) -> None:
    """Puts ours in front of the pack's functions wherever a module has them by name; once."""
    for name in FUNCTIONS:
        original = pack.function(name)
        if original is None or original in _ours:
            continue
        ours = _FRONTS[name](original)
        _ours.add(ours)
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get(name) is original:
                setattr(module, name, ours)


def _loading(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_weights(transformer: Any, *args: Any, **kwargs: Any) -> Any:
        takeover = takeover_of(transformer)
        if takeover is not None:
            takeover.close_for_loading()
        return original(transformer, *args, **kwargs)

    return load_weights


def _starting(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def init_blockswap(transformer: Any, block_swap_args: Any, model: Any) -> Any:
        takeover, wish = takeover_of(transformer), wish_in(block_swap_args)
        if takeover is None:
            return original(transformer, block_swap_args, model)
        takeover.close()
        if wish is None:
            takeover.restore_settings(Count)
            result = original(transformer, block_swap_args, model)
            takeover.note_settings(Count)
            return result
        with takeover.without_its_swap():
            result = original(transformer, block_swap_args, model)
        nothing = Count(0, wish)
        try:
            takeover.open(wish, model["sd"], nothing)
        except BaseException:
            takeover.restore_settings(Count)
            raise
        return result

    return init_blockswap


def _ending(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def offload_transformer(transformer: Any, *args: Any, **kwargs: Any) -> Any:
        takeover = takeover_of(transformer)
        if takeover is not None:
            takeover.close_run()
            takeover.restore_settings(Count)
        return original(transformer, *args, **kwargs)

    return offload_transformer


_FRONTS = {LOAD: _loading, INIT: _starting, OFFLOAD: _ending}


def take_over(transformer: Any, pack: Pack) -> None:
    """From now on runs of this transformer are looked at, whichever clone they are for."""
    install(pack)
    if takeover_of(transformer) is None:
        Takeover(transformer).note_settings(Count)
