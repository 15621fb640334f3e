"""Which hooks, guards and corrections a model gets when the engine starts, and in what order."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...pieces import DIFFUSERS, Family, Pieces, family_of, why_never
from ...stream.engine.streamer import Streamer
from ...stream.model.hooks import Hooks, Moves
from ...stream.units.resident import Resident
from ...stream.units.unit import StreamedUnit, Unit
from ..assembly.parts import Parts
from ..guards import open_swaps
from ..guards.foreign_writes import Doors
from ..running.corrector import Corrector
from ..running.freedom import Freedom
from ..running.handle import Swap
from ..running.lora_loading import LoraLoading
from ..running.out_of_memory import Retry
from ..running.residency import Residency


@dataclass(frozen=True, slots=True)
class Hosted:
    """The application around a model: what it does after each forward, its classes in pieces.

    `methods_of` a block: by which methods the application may run it beside its call.
    """

    after_forward: Callable[[], None] | None = None
    family: Family = DIFFUSERS
    methods_of: Callable[[torch.nn.Module], Iterable[str]] = lambda _: ()


def start_engine(  # noqa: PLR0913 - all but four by name
    parts: Parts,
    streamed: dict[str, StreamedUnit],
    residents: Mapping[str, Resident],
    freedom: Freedom | None,
    *,
    debug: bool,
    hosted: Hosted | None = None,
    swap: Swap | None = None,
) -> tuple[Swap, Hooks]:
    """Connects the engine to the model; from here on a forward streams.

    `hosted`: an application around it watches over moves, loading and memory instead. `swap`: the
    handle of a model that is opened anew.
    """
    live, undo = parts.live, parts.undo
    residency = None if freedom is None else Residency(parts, freedom, streamed)
    if residency is not None:
        undo.callback(residency.close)
    streamer = _streamer(parts, streamed, residents, residency)
    undo.callback(streamer.drain)
    if swap is None:
        swap = Swap(live.root, parts.plan, parts.device, streamer)
    else:
        swap.begin(parts.plan, streamer)
    parts.sharing.add(swap)
    family = family_of(live.root) if hosted is None else hosted.family
    pieces = swap.pieces = _pieces(parts, swap, family)
    hooks = Hooks(live.root)
    undo.callback(hooks.remove)
    modules = [unit.module for unit in live.units]
    hooks.connect(streamer, modules, (hosted or Hosted()).methods_of)
    if hosted is None:
        _guard(parts, swap, hooks, streams=bool(streamed), debug=debug)
    if pieces is not None:
        hooks.after_forward(_Compiled(pieces, swap).look)
    if debug:
        swap.print_visits()
        hooks.after_forward(swap.flush_visits)
    if hosted is not None and hosted.after_forward is not None:
        hooks.after_forward(hosted.after_forward)
    _make_known(parts, swap, modules)
    parts.device.synchronize()
    swap.watch_peak()
    parts.recorder.restart()
    if not parts.device.on_host and hosted is None:
        corrector = None
        if residency is not None:
            residency.connect(swap, streamer)
            corrector = Corrector(swap, residency, parts.device, parts.sharing)
            parts.sharing.add_corrected(residency, corrector)
        retry = Retry(swap, parts.device, streamer, residency, corrector, pieces)
        hooks.stand_in(retry.wrap)
    return swap, hooks


def _guard(parts: Parts, swap: Swap, hooks: Hooks, *, streams: bool, debug: bool) -> None:
    """Moves, loading and writes by other code are refused. `streams`: blocks come and leave."""
    live = parts.live
    units = [unit.module for unit in live.units]
    guarded = units + [place.module for table in live.tables for place in table.places]
    allowed = _moves(parts)
    hooks.guard(guarded, allowed)
    hooks.refuse_loading(guarded, allowed)
    if streams or not parts.device.on_host:
        LoraLoading(live, swap, hooks, parts.device.torch_device).install(parts.undo)
        doors = Doors(parts, swap, debug=debug)
        doors.look()
        doors.close(parts.undo)


def _make_known(parts: Parts, swap: Swap, modules: Sequence[torch.nn.Module]) -> None:
    """The model names its swap, no other takes its blocks, and dropping it lets the pool go."""
    root, undo = parts.live.root, parts.undo
    root.blockswap = swap  # type: ignore[assignment]
    open_swaps.opened(root, modules)
    undo.callback(_forget_swap, root)
    # For a model that is dropped without having been closed.
    dropped = weakref.finalize(root, parts.pool.abandon)
    dropped.atexit = False  # the pool sees to that: a thread may be in the middle of a forward
    undo.callback(dropped.detach)


def _pieces(parts: Parts, swap: Swap, family: Family) -> Pieces | None:
    """What cuts the model's forward in pieces, at once or when memory runs out; None: nothing."""
    asked, root = parts.plan.chunk_tokens, parts.live.root
    if asked == 0:
        return None
    if not asked and (parts.device.on_host or family.small(root) is None):
        return None
    if asked and (why := why_never(root, family)) is not None:
        why = f"all blocks run whole, although pieces of {asked:,} tokens were asked: {why}"
        swap.cut(0, why)
        return None
    pieces = Pieces(root, asked or 0, swap.tell, family=family)
    parts.undo.callback(pieces.remove)
    return pieces


class _Compiled:
    """Finds that a forward which was to be cut never came to where it is cut, and says so once."""

    def __init__(self, pieces: Pieces, swap: Swap) -> None:
        self._pieces, self._swap = pieces, swap

    def look(self) -> None:
        if self._pieces.were_passed_by() and self._swap.plan.chunk_tokens:
            why = "all blocks run whole and not in pieces: the model's forward is compiled"
            self._swap.cut(0, why)


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
    outside = (*parts.live.rest, *parts.live.tables)
    specs += [t.spec for t in outside]
    dtypes = {getattr(torch, leaf.dtype) for spec in specs for leaf in spec.leaves}
    floating = frozenset(dtype for dtype in dtypes if dtype.is_floating_point)
    placed = [t for unit in parts.live.units for t in unit.tensors] + list(outside)
    own = frozenset((id(p.module), p.name) for t in placed for p in t.places)
    return Moves(parts.live.layout.label, parts.device.torch_device, floating, own)


def _forget_swap(root: torch.nn.Module) -> None:
    vars(root).pop("blockswap", None)
    open_swaps.ended(root)
