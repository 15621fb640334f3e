"""What happens when a sampled forward runs out of memory: who leaves the device, and when it fails.

The failed attempt's tensors go first. Then blocks run in smaller pieces of tokens, where they can:
no weight moves for that. Then what the host keeps of other models goes, and then blocks that stay
leave: where the plan chose them the model is loaded again with fewer, so that every weight is
patched as ever; where the user chose them, the host takes its own weights off. The random state is
put back, so the output is that of a forward that never failed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ...units import format_bytes
from ..in_pieces.piece_size import cut_smaller, run_in_pieces
from ..runs.run_again import RunAgain
from ..runs.wish import Wish
from ..seams import host, host_dynamic
from .holding import Holding, holding_of
from .overrides import KEY, release, transformer_of, wish_of

_ALL = 1e30
# Failures after which a forward is run again: dropped, others all gone, half of ours, all of ours.
_MOST = 4


def survive(patcher: Any) -> None:
    """Has the forwards of a clone with block swap run again when they run out of memory."""
    host.around_forward(patcher, KEY, _run, run_in_pieces)


def _run(executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    model: Any = executor.class_obj  # type: ignore[attr-defined]
    holding, call = holding_of(model), partial(executor, *args, **kwargs)
    if holding is None or holding.claim.device.type == "cpu":
        return call()
    return _Sampled(model, holding.claim.device).run(call)


class _Sampled(RunAgain):
    """One forward of a sampled model."""

    def __init__(self, model: Any, device: torch.device) -> None:
        super().__init__(device)
        self._model = model

    def why_not(self) -> str | None:
        may = _may_go_on(self._model, self.count)
        return None if may else _note(self._model, self.count)

    def make_room(self) -> str:
        """Smaller pieces before anything leaves: no weight moves for them."""
        holding = holding_of(self._model)
        said = None if holding is None else cut_smaller(holding.swap)
        if said is None:
            return _make_room(self._model, self.attempt.wanted(), self.count)
        self.count -= 1  # what was tried before says nothing of smaller pieces
        return said

    def tell(self, left: str) -> None:
        holding, asked = holding_of(self._model), self.attempt.asked
        if holding is not None and holding.swap is not None:
            wanted = "" if asked is None else f" (it asked for {format_bytes(asked)} more)"
            holding.swap.tell(f"a forward ran out of memory{wanted}: {left}, and it was run again")


def _may_go_on(model: Any, count: int) -> bool:
    """Whether another attempt has anything to gain: it can only by what has not left yet."""
    patcher, holding = host.current_patcher(model), holding_of(model)
    if holding is None or count > _MOST or wish_of(patcher) is None:
        return False
    return count == 1 or _movable(patcher, holding)


def _movable(patcher: Any, holding: Holding) -> bool:
    if host.is_dynamic(patcher):
        return host.loaded_bytes(patcher.model) > 0
    if host.has_hooks(patcher):
        return False  # they are in the weights, and loading again would lose them
    if _wish(patcher).exact:
        return not patcher.patches and host.loaded_bytes(patcher.model) > 0
    return any(unit.tier == "resident" for unit in holding.plan.units)


def _wish(patcher: Any) -> Wish:
    wish = wish_of(patcher)
    assert wish is not None, "asked before"
    return wish


def _make_room(model: Any, wanted: int | None, count: int) -> str:
    """Lets go of what there is, more each time, until `wanted` bytes are free; what has left."""
    patcher, holding = host.current_patcher(model), holding_of(model)
    assert holding is not None, "asked before"
    least = wanted if wanted is not None and count == 1 else _ALL
    others = host.free_others(patcher, least)
    said = [f"{format_bytes(others)} of other models left"] if others else []
    lacking = None if wanted is None else wanted - host.free_bytes(patcher.load_device)
    if lacking is None or lacking > 0 or (count > 1 and not others):
        said += _let_own_leave(patcher, holding, lacking, count)
    return " and ".join(said) or "what it held was dropped"


def _let_own_leave(patcher: Any, holding: Holding, lacking: int | None, count: int) -> list[str]:
    if host.is_dynamic(patcher):
        went = host_dynamic.free_places(patcher)
    elif not _movable(patcher, holding):
        return []
    elif not _wish(patcher).exact:
        return [_load_with_less(patcher, holding, lacking, count)]
    else:
        loaded = host.loaded_bytes(patcher.model)
        wanted = loaded if count == _MOST else max(lacking or 0, loaded // 2)
        went = int(patcher.partially_unload(patcher.offload_device, wanted) or 0)
    return [f"{format_bytes(went)} of the model's weights left"] if went else []


def _load_with_less(patcher: Any, holding: Holding, lacking: int | None, count: int) -> str:
    """Loads the model anew, with what must leave streamed: in the last attempt all that may be."""
    plan, before = holding.plan, len(holding.plan.residents)
    leave = max(lacking or 0, plan.resident_bytes // 2)
    limit = 0 if count == _MOST else max(plan.device_bytes - leave, 0)
    _wish(patcher).open_with_less(limit, partial(_load_for, patcher))
    now = holding_of(patcher.model)
    after = len(now.plan.residents) if now is not None else 0
    return f"{before - after} blocks no longer stay"


def _load_for(patcher: Any, wish: Wish) -> None:
    patcher.set_attachments(KEY, wish)
    release(patcher.model)
    host.reload(patcher)


def _note(model: Any, count: int) -> str:
    holding = holding_of(model)
    left = 0 if holding is None else holding.plan.device_bytes
    return (
        f"blockswap ran this forward {count} times, and {format_bytes(left)} of weights and slots "
        f"are left of {type(transformer_of(host.current_patcher(model))).__name__}: stream more "
        "blocks, or make the clip smaller or shorter"
    )
