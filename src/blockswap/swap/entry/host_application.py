"""Block swap inside an application that places weights itself: only the units are the engine's.

Three kinds of model: one whose weights are in host memory (streamed units are taken from there, all
others stay the application's); one whose weights are lazily mapped from their file (the same, but
they are copied and stay where they are); and one whose units are in a checkpoint file and nowhere
else (then all of its units are the engine's, and what lies outside them is the application's).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from ...adapters.live import LiveModel, describe_module, refuse_unloaded
from ...adapters.recast import Dtypes, in_dtypes
from ...adapters.stored import StoredModel, match_skeleton
from ...ambient import undisturbed
from ...errors import ArgsError
from ...layout.checkpoint import Checkpoint
from ...plan import SwapPlan, make_plan
from ...selection import BlockSwapArgs, select
from ...stream.device import open_device
from ..assembly.parts import make_parts
from ..assembly.unit_store import OwnMemory
from ..opening.engine_start import Hosted, start_engine
from ..opening.from_file import Opening
from ..opening.from_mapping import copy_mapped
from ..opening.from_memory import pin_budget, rehome
from ..plan_inputs.model_bytes import facts_of_checkpoint, facts_of_module, placed_by_host
from ..running.handle import Swap
from .arguments import refuse_swapped


@dataclass(frozen=True, slots=True)
class Mapped:
    """Weights that the host has mapped from their file: they are copied, and never moved.

    `dtypes`: the dtype a weight is to arrive in, by its name in the model, where it is not the one
    it is mapped in. `pin_bytes`: the most host memory to pin for the copies; weights beyond it are
    read through the mapping each time they run. `count_pinned`: told how many bytes were pinned,
    and at closing that many less.
    """

    dtypes: Dtypes
    pin_bytes: int
    count_pinned: Callable[[int], None]


@undisturbed()
def plan_units(
    model: torch.nn.Module,
    args: BlockSwapArgs,
    *,
    device: str | torch.device,
    granted_bytes: int | None = None,
    mapped: Mapped | None = None,
) -> SwapPlan:
    """The plan for a loaded model whose host application moves all that is not streamed.

    `granted_bytes`: what the host allows weights and slots on the device, for an automatic plan.
    Raises ArgsError, ModelError, PlanError or DeviceError.
    """
    live = _described(model, args, mapped)
    facts = placed_by_host(facts_of_module(live, open_device(device)), live, residents=True)
    facts = replace(facts, granted_bytes=granted_bytes)
    return make_plan(facts, select(args, live.layout), args)


@undisturbed()
def stream_units(
    model: torch.nn.Module,
    plan: SwapPlan,
    args: BlockSwapArgs,
    *,
    device: str | torch.device,
    hosted: Hosted,
    mapped: Mapped | None = None,
) -> Swap:
    """Streams the plan's units and nothing else: residents and the rest are the host's to place.

    The streamed units' weights must be in host memory, as in `swap_blocks`. Nothing watches over
    moves of the model: the host must not move a streamed unit before the swap is closed.
    Raises ModelError, DeviceError or StateError, and leaves the model as it was.
    """
    where = open_device(device)
    refuse_swapped(model)
    live = _described(model, args, mapped)
    refuse_unloaded(live, units=plan.streamed)
    with ExitStack() as undo, undisturbed():
        parts = make_parts(live, plan, where, undo)
        if where.on_host:
            streamed = {}
        elif mapped is not None:
            pin_bytes = min(mapped.pin_bytes, pin_budget(args))
            streamed = copy_mapped(parts, plan, pin_bytes, mapped.count_pinned)
        else:
            streamed = rehome(parts, plan, OwnMemory(where, pin_budget(args)))
        swap, _ = start_engine(
            parts, streamed, {}, None, debug=args.block_swap_debug, hosted=hosted
        )
        swap.keep(undo.pop_all(), [lambda: tuple(parts.pool.sentences)])
    return swap


def _described(model: torch.nn.Module, args: BlockSwapArgs, mapped: Mapped | None) -> LiveModel:
    live = describe_module(model, args.block_lists)
    return live if mapped is None else in_dtypes(live, mapped.dtypes)


@dataclass(frozen=True, slots=True)
class FileUnits:
    """A model whose units are in a checkpoint; their parameters are meta tensors in between."""

    root: torch.nn.Module
    checkpoint: Checkpoint
    stored: StoredModel

    @property
    def names(self) -> tuple[str, ...]:
        """The units, in execution order."""
        return tuple(unit.layout.name for unit in self.stored.live.units)

    def as_it_is(self) -> StoredModel:
        """The model as it hangs together now, in front of the same file."""
        return StoredModel(describe_module(self.root), self.stored.stored)


@undisturbed()
def find_file_units(
    skeleton: torch.nn.Module,
    checkpoint: Checkpoint,
    keys: Mapping[str, Sequence[str]] | None = None,
) -> FileUnits:
    """Finds the units of `skeleton`, whose parameters are all on meta, in a checkpoint.

    They compute in the dtypes that the skeleton has. `keys`: the file's keys for the leaves of a
    parameter, by its label, where they are not its own name. Raises GeometryError or ModelError.
    """
    return FileUnits(skeleton, checkpoint, match_skeleton(skeleton, checkpoint, keys))


@undisturbed()
def plan_file_units(
    units: FileUnits,
    args: BlockSwapArgs,
    *,
    device: str | torch.device,
    granted_bytes: int | None = None,
) -> SwapPlan:
    """The plan for a model whose units are in a file; as `plan_units` otherwise."""
    if args.block_lists:
        raise ArgsError(
            f"block_lists={args.block_lists} was asked of a model whose units were found when its "
            "file was opened: leave it out"
        )
    model = units.as_it_is()
    facts = facts_of_checkpoint(model, open_device(device))
    facts = placed_by_host(facts, model.live, residents=False)
    facts = replace(facts, granted_bytes=granted_bytes)
    return make_plan(facts, select(args, model.live.layout), args)


@undisturbed()
def stream_file_units(
    units: FileUnits,
    plan: SwapPlan,
    args: BlockSwapArgs,
    *,
    device: str | torch.device,
    hosted: Hosted,
) -> Swap:
    """Reads the plan's residents and streams the others; closing leaves meta tensors again.

    Raises ReadError when the file was changed, DeviceError or StateError.
    """
    where = open_device(device)
    refuse_swapped(units.root)
    units.checkpoint.verify_unchanged()
    model = units.as_it_is()
    with ExitStack() as undo, undisturbed():
        parts = make_parts(model.live, plan, where, undo)
        opening = Opening(parts, model, units.checkpoint)
        opening.load_residents()
        streamed = opening.ram_units() | opening.disk_units(())
        swap, _ = start_engine(
            parts, streamed, {}, None, debug=args.block_swap_debug, hosted=hosted
        )
        told = [lambda: tuple(parts.pool.sentences), lambda: opening.reading_sentences(swap)]
        swap.keep(undo.pop_all(), told)
    return swap
