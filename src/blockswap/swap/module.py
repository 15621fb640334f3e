"""`swap_blocks`: block swap for a model that is loaded already."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from ..adapters.families import bare
from ..adapters.live import LiveModel, describe_module, refuse_unloaded
from ..ambient import undisturbed
from ..errors import ModelError, StateError
from ..plan import SwapPlan, make_plan
from ..selection import BlockSwapArgs, select
from ..store.ram import RamStore
from ..stream.device import Device, open_device
from ..stream.resident import Resident
from ..stream.unit import StreamedUnit
from .assemble import (
    Parts,
    ensure_staging,
    idle_binding,
    make_parts,
    ram_unit,
)
from .facts import facts_of_module
from .foresee import AnyWorkload, foresee
from .forms import RamForms
from .handle import Swap
from .place import hang_on_device, hang_unit, host_leaves
from .sharing import Sharing
from .start import Basis, freedom_of, start_engine

UNLIMITED = 1 << 62


def as_args(args: BlockSwapArgs | Mapping[str, Any] | None) -> BlockSwapArgs:
    """The caller's arguments, whichever way they were given; None means automatic."""
    if args is None:
        return BlockSwapArgs()
    return args if isinstance(args, BlockSwapArgs) else BlockSwapArgs.from_mapping(args)


def refuse_swapped(model: torch.nn.Module) -> None:
    """Raises StateError when another swap of this model is open."""
    swap = vars(bare(model)).get("blockswap")
    if isinstance(swap, Swap) and swap.forked:
        raise StateError(
            f"this {type(bare(model)).__name__} was swapped in the process that this one was "
            "forked from, and only that one can give it back: load the model here"
        )
    if isinstance(swap, Swap) and not swap.closed:
        raise StateError(
            f"this {type(bare(model)).__name__} is swapped already: close that swap first"
        )


@undisturbed()
def swap_blocks(
    model: torch.nn.Module,
    args: BlockSwapArgs | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device,
    workload: AnyWorkload | None = None,
) -> Swap:
    """Streams chosen blocks of a loaded model to `device`; everything else is put there.

    The model's weights must be in host memory and stay there: streamed blocks move unit by unit
    into pinned memory (never more than the model and about one block), residents and the rest
    are copied to the device. On the CPU nothing moves. `args` is a `BlockSwapArgs`, a dictionary
    of another pack, or None for an automatic plan.

    With a `workload` (the clip, what a forward costs, or either with a machine as `Outlook`) the
    plan knows the activations, and a `vram_budget` covers them too; where the machine's speed is
    known (`blockswap probe`) it is the fastest that fits.

    Use it as a context manager or call `close()`. Raises ArgsError, ModelError, PlanError,
    DeviceError or StateError, and leaves the model as it was. Output is equal to the last bit to
    that of the whole model on the same device.
    """
    wanted, where = as_args(args), open_device(device)
    live, basis = find_loaded(model, wanted, where, workload)
    plan = make_plan(basis.facts, basis.selection, wanted, basis.foresight)
    return swap_loaded(live, plan, basis, where, pin_bytes=pin_budget(wanted))


def find_loaded(
    model: torch.nn.Module, wanted: BlockSwapArgs, where: Device, workload: AnyWorkload | None
) -> tuple[LiveModel, Basis]:
    """A loaded model's units and what a plan for it is made of. Raises as `swap_blocks`."""
    if not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"a {type(model).__name__} was given to swap: give the transformer itself, a "
            "torch.nn.Module (of a pipeline: pipe.transformer)"
        )
    refuse_swapped(model)
    live = describe_module(model)
    refuse_unloaded(live)
    foresight = foresee(live, workload, where)
    facts, selection = facts_of_module(live, where), select(wanted, live.layout)
    return live, Basis(facts, selection, wanted, foresight)


def swap_loaded(
    live: LiveModel,
    plan: SwapPlan,
    basis: Basis,
    where: Device,
    *,
    pin_bytes: int,
    sharing: Sharing | None = None,
) -> Swap:
    """Carries out `plan`, with the slots of `sharing` if there are any.

    `pin_bytes`: most bytes of host memory to pin for streamed units, now and later.
    """
    with ExitStack() as undo, undisturbed():
        parts = make_parts(live, plan, where, undo, sharing)
        streamed: dict[str, StreamedUnit] = {}
        residents: dict[str, Resident] = {}
        if not where.on_host:
            residents = _place_residents(parts)
            streamed = rehome(parts, plan, pin_bytes)
        forms = RamForms(parts, basis.facts, pin_budget=pin_bytes - plan.pinned_bytes)
        freedom = freedom_of(basis, forms)
        debug = basis.args.block_swap_debug
        swap, _ = start_engine(parts, streamed, residents, freedom, debug=debug)
        swap.keep(undo.pop_all(), [lambda: tuple(parts.pool.sentences)])
    return swap


def pin_budget(args: BlockSwapArgs) -> int:
    """Most bytes of host memory to pin."""
    return UNLIMITED if args.ram_budget_bytes is None else args.ram_budget_bytes


def _place_residents(parts: Parts) -> dict[str, Resident]:
    live: LiveModel = parts.live
    hang_on_device(parts.undo, live.rest, host_leaves(live.rest), parts.device)
    return {
        unit.layout.name: hang_unit(
            parts.undo, unit.tensors, host_leaves(unit.tensors), parts.device
        )
        for unit in live.units
        if parts.plan.tier_of(unit.layout.name) == "resident"
    }


def rehome(parts: Parts, plan: SwapPlan, pin_budget: int) -> dict[str, StreamedUnit]:
    """Moves the streamed units into the RAM store, one at a time."""
    names = set(plan.streamed)
    units = [unit for unit in parts.live.units if unit.layout.name in names]
    store = RamStore([u.layout for u in units], lender=parts.device, pin_budget=pin_budget)
    streamed = {}
    for index, unit in enumerate(units):
        parts.undo.callback(store.give_back, index)
        store.adopt(index, [live.tensor for live in unit.tensors])
    ensure_staging(parts, store, plan.slot_bytes)
    for index, unit in enumerate(units):
        streamed[unit.layout.name] = ram_unit(parts, store, index, unit, idle_binding(unit))
    return streamed
