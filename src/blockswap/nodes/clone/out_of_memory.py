"""What happens when a sampled forward runs out of memory: who leaves the device, and when it fails.

The failed attempt's tensors go first. Then blocks run in smaller pieces of tokens, where they can:
no weight moves for that. Then what the host keeps of other models goes, and then blocks that stay
leave: where the plan chose them the model is loaded again with fewer, so that every weight is
patched as ever; where the user chose them, the host takes its own weights off. The random state is
put back, so the output is that of a forward that never failed.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...errors import PlanError
from ...stream.device import open_device
from ...swap import Attempt
from ...units import format_bytes
from ..in_pieces.piece_size import cut_smaller, run_in_pieces
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
    holding = holding_of(model)
    if holding is None or holding.claim.device.type == "cpu":
        return executor(*args, **kwargs)
    attempt, count = Attempt(open_device(holding.claim.device)), 0
    while True:
        try:
            return executor(*args, **kwargs)
        except Exception as error:
            if not host.is_out_of_memory(error):
                raise
            count += 1
            attempt.failed(error)
            if not _may_go_on(model, count):
                _annotate(error, _note(model, count))
                raise
        # Here and not in the clause above, where the interpreter still holds the error.
        attempt.drop()
        said = _cut_smaller(model)
        if said is None:
            said = _make_room(model, attempt.wanted(), count)
        else:
            count -= 1  # what was tried before says nothing of smaller pieces
        _tell(model, attempt.asked, said)
        attempt.restore()


def _cut_smaller(model: Any) -> str | None:
    """Smaller pieces before anything leaves: no weight moves for them."""
    holding = holding_of(model)
    return None if holding is None else cut_smaller(holding.swap)


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


def _wish(patcher: Any) -> Any:
    return wish_of(patcher)


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
    for limit_bytes in (limit, 0):
        patcher.set_attachments(KEY, replace(_wish(patcher), limit_bytes=limit_bytes))
        release(patcher.model)
        try:
            host.reload(patcher)
            break
        except PlanError:
            if limit_bytes == 0:
                raise
    now = holding_of(patcher.model)
    after = len(now.plan.residents) if now is not None else 0
    return f"{before - after} blocks no longer stay"


def _tell(model: Any, asked: int | None, said: str) -> None:
    holding = holding_of(model)
    if holding is not None and holding.swap is not None:
        wanted = "" if asked is None else f" (it asked for {format_bytes(asked)} more)"
        holding.swap.tell(f"a forward ran out of memory{wanted}: {said}, and it was run again")


def _annotate(error: BaseException, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)


def _note(model: Any, count: int) -> str:
    holding = holding_of(model)
    left = 0 if holding is None else holding.plan.device_bytes
    return (
        f"blockswap ran this forward {count} times, and {format_bytes(left)} of weights and slots "
        f"are left of {type(transformer_of(host.current_patcher(model))).__name__}: stream more "
        "blocks, or make the clip smaller or shorter"
    )
