"""The last step of opening: the engine is connected to the model, and from then on it runs."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..plan import Facts, Foresight
from ..plan.correct import Limits
from ..selection import BlockSwapArgs, Selection
from ..stream.hooks import Hooks, Moves
from ..stream.resident import Resident
from ..stream.streamer import Streamer
from ..stream.unit import StreamedUnit, Unit
from .assemble import Parts
from .corrector import TENTHS_USED, Corrector
from .doors import Doors
from .handle import Swap
from .residency import Forms, Freedom, Residency
from .retry import Retry

# Slots for units that leave where all were resident at first, as many as a plan would make.
LATER_SLOTS = 3


@dataclass(frozen=True, slots=True)
class Basis:
    """What a plan was made of."""

    facts: Facts
    selection: Selection
    args: BlockSwapArgs
    foresight: Foresight | None


def freedom_of(basis: Basis, forms: Forms) -> Freedom | None:
    """What may change while the swap runs: None for exact blocks, or where nothing may."""
    facts, args = basis.facts, basis.args
    if basis.selection.exact or facts.on_host or not basis.selection.candidates:
        return None
    return Freedom(
        facts=facts,
        movable=frozenset(basis.selection.candidates),
        limits=_limits(basis),
        slots=LATER_SLOTS if args.copies_ahead is None else args.copies_ahead + 1,
        forms=forms,
        speeds=None if basis.foresight is None else basis.foresight.speeds,
    )


def _limits(basis: Basis) -> Limits:
    """The limits that the plan was made for; a budget covers activations if they were foreseen."""
    free, budget = basis.facts.device_free_bytes, basis.args.vram_budget_bytes
    margin = None if basis.foresight is None else basis.foresight.margin_bytes
    if budget is None:
        total = None if free is None else free * TENTHS_USED // 10
        return Limits(total, margin_bytes=margin)
    if basis.foresight is None:
        return Limits(None, weights_bytes=budget)
    return Limits(budget, margin_bytes=margin)


def start_engine(
    parts: Parts,
    streamed: dict[str, StreamedUnit],
    residents: Mapping[str, Resident],
    freedom: Freedom | None,
    *,
    debug: bool,
    hosted: bool = False,
) -> tuple[Swap, Hooks]:
    """Connects the engine to the model; from here on a forward streams.

    `hosted`: an application around it watches over moves, loading and memory instead.
    """
    live, undo = parts.live, parts.undo
    residency = None if freedom is None else Residency(parts, freedom, streamed)
    if residency is not None:
        undo.callback(residency.close)
    streamer = _streamer(parts, streamed, residents, residency)
    undo.callback(streamer.drain)
    swap = Swap(live.root, parts.plan, parts.device, streamer)
    parts.sharing.add(swap)
    hooks = Hooks(live.root)
    undo.callback(hooks.remove)
    modules = [unit.module for unit in live.units]
    hooks.connect(streamer, modules)
    if not hosted:
        hooks.guard(modules, _moves(parts))
        hooks.refuse_loading(modules, live.layout.label)
        if streamed or not parts.device.on_host:
            doors = Doors(parts, swap, debug=debug)
            doors.look()
            doors.close(undo)
    if debug:
        swap.print_visits()
        hooks.after_forward(swap.flush_visits)
    live.root.blockswap = swap  # type: ignore[assignment]
    undo.callback(_forget_swap, live.root)
    # For a model that is dropped without having been closed.
    dropped = weakref.finalize(live.root, parts.pool.abandon)
    dropped.atexit = False  # the pool sees to that: a thread may be in the middle of a forward
    undo.callback(dropped.detach)
    parts.device.synchronize()
    parts.device.reset_peak()
    parts.recorder.restart()
    if not parts.device.on_host and not hosted:
        corrector = None
        if residency is not None:
            residency.connect(swap, streamer)
            corrector = Corrector(swap, residency, parts.device, parts.sharing)
            parts.sharing.add_corrected(residency, corrector)
        retry = Retry(swap, parts.device, streamer, residency, corrector)
        hooks.stand_in(retry.wrap)
    return swap, hooks


def _streamer(
    parts: Parts,
    streamed: Mapping[str, StreamedUnit],
    residents: Mapping[str, Resident],
    residency: Residency | None,
) -> Streamer:
    """The engine; slabs of units that never leave are not its business."""
    units = []
    for planned, unit in zip(parts.plan.units, parts.live.units, strict=True):
        name = planned.name
        free = residency is not None and residency.may_move(name)
        resident = residents.get(name) if free else None
        units.append(Unit(name, planned.tier, unit.module, streamed.get(name), resident))
    return Streamer(units, parts.pool, prefetch=parts.plan.prefetch, recorder=parts.recorder)


def _moves(parts: Parts) -> Moves:
    specs = [t.spec for unit in parts.live.units for t in unit.tensors]
    specs += [t.spec for t in parts.live.rest]
    dtypes = {getattr(torch, leaf.dtype) for spec in specs for leaf in spec.leaves}
    floating = frozenset(dtype for dtype in dtypes if dtype.is_floating_point)
    placed = [t for unit in parts.live.units for t in unit.tensors] + list(parts.live.rest)
    own = frozenset((id(p.module), p.name) for t in placed for p in t.places)
    return Moves(parts.live.layout.label, parts.device.torch_device, floating, own)


def _forget_swap(root: torch.nn.Module) -> None:
    vars(root).pop("blockswap", None)
