"""`swap_blocks`: checks, plan and order of steps for a model already in host memory."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from ...adapters.live import LiveModel, describe_module, refuse_unloaded
from ...ambient import undisturbed
from ...errors import ModelError
from ...plan import SwapPlan, make_plan
from ...ranks.group import Ranks, ranks_of
from ...ranks.shared_weights import SharedWeights, share_weights
from ...selection import BlockSwapArgs, select
from ...stream.device import Device, open_device
from ...stream.units.resident import Resident
from ...stream.units.unit import StreamedUnit
from ..assembly.parts import make_parts
from ..assembly.pool_members import Sharing
from ..assembly.unit_store import HostMemory, OwnMemory, SharedMemory
from ..opening.engine_start import start_engine
from ..opening.from_memory import pin_budget, place_residents, rehome
from ..plan_inputs.basis import Basis
from ..plan_inputs.model_bytes import facts_of_module
from ..plan_inputs.outlook import AnyWorkload, foresee
from ..running.departures import RamForms
from ..running.freedom import freedom_of
from ..running.handle import Swap
from .arguments import as_args, refuse_swapped


@undisturbed()
def swap_blocks(
    model: torch.nn.Module,
    args: BlockSwapArgs | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device,
    workload: AnyWorkload | None = None,
    mesh: Any = None,
) -> Swap:
    """Streams chosen blocks of a loaded model to `device`; everything else is put there.

    The model's weights must be in host memory and stay there: streamed blocks move unit by unit
    into pinned memory (never more than the model and about one block), residents and the rest
    are copied to the device. On the CPU nothing moves. `args` is a `BlockSwapArgs`, a dictionary
    of another pack, or None for an automatic plan.

    With a `workload` (the clip, what a forward costs, or either with a machine as `Outlook`) the
    plan knows the activations, and a `vram_budget` covers them too; where the machine's speed is
    known (`blockswap probe`) it is the fastest that fits.

    With a `mesh` (a `DeviceMesh`) every rank of it makes this call, each with its own `device` and
    `args`. The weights then rest once in host memory for all ranks of a host: those of its first
    rank that has any; the others give the model on meta, or the same weights, which are compared
    and let go. Where one rank refuses or is missing, all refuse. Closing leaves the weights where
    they are.

    Use it as a context manager or call `close()`. Raises ArgsError, ModelError, PlanError,
    DeviceError or StateError, and leaves the model as it was. Output is equal to the last bit to
    that of the whole model on the same device.
    """
    if mesh is not None:
        return _swap_shared(model, mesh, args, device, workload)
    wanted, where = as_args(args), open_device(device)
    live, basis = find_loaded(model, wanted, where, workload)
    plan = make_plan(basis.facts, basis.selection, wanted, basis.foresight)
    return swap_loaded(live, plan, basis, where, OwnMemory(where, pin_budget(wanted)))


def _swap_shared(
    model: torch.nn.Module,
    mesh: Any,
    args: BlockSwapArgs | Mapping[str, Any] | None,
    device: str | torch.device,
    workload: AnyWorkload | None,
) -> Swap:
    """`swap_blocks` on one rank of a mesh."""
    ranks = ranks_of(mesh)
    with ranks.together("check what was asked"):
        wanted, where = as_args(args), open_device(device)
        _refuse_no_module(model)
        refuse_swapped(model)
    return swap_shared(model, ranks, share_weights(model, ranks), Asked(wanted, where, workload))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller asked for, after the checks."""

    wanted: BlockSwapArgs
    where: Device
    workload: AnyWorkload | None


def swap_shared(model: torch.nn.Module, ranks: Ranks, weights: SharedWeights, asked: Asked) -> Swap:
    """Swaps a model whose weights all ranks of the host share by now."""
    wanted, where = asked.wanted, asked.where
    with ranks.together("plan"), undisturbed():
        live, basis = find_loaded(model, wanted, where, asked.workload)
        plan = make_plan(basis.facts, basis.selection, wanted, basis.foresight)
    host = SharedMemory(weights, where, pin_budget(wanted))
    return swap_loaded(live, plan, basis, where, host)


def find_loaded(
    model: torch.nn.Module, wanted: BlockSwapArgs, where: Device, workload: AnyWorkload | None
) -> tuple[LiveModel, Basis]:
    """A loaded model's units and what a plan for it is made of. Raises as `swap_blocks`."""
    _refuse_no_module(model)
    refuse_swapped(model)
    live = describe_module(model, wanted.block_lists)
    refuse_unloaded(live)
    foresight = foresee(live, workload, where)
    facts, selection = facts_of_module(live, where), select(wanted, live.layout)
    return live, Basis(facts, selection, wanted, foresight)


def swap_loaded(
    live: LiveModel,
    plan: SwapPlan,
    basis: Basis,
    where: Device,
    host: HostMemory,
    sharing: Sharing | None = None,
) -> Swap:
    """Carries out `plan` from the memory of `host`, with the slots of `sharing` if there are."""
    with ExitStack() as undo, undisturbed():
        if not where.on_host:
            host.hold(undo)
        parts = make_parts(live, plan, where, undo, sharing)
        streamed: dict[str, StreamedUnit] = {}
        residents: dict[str, Resident] = {}
        if not where.on_host:
            residents = place_residents(parts)
            streamed = rehome(parts, plan, host)
        freedom = freedom_of(basis, RamForms(parts, basis.facts, host))
        debug = basis.args.block_swap_debug
        swap, _ = start_engine(parts, streamed, residents, freedom, debug=debug)
        swap.keep(undo.pop_all(), [lambda: (*host.sentences, *parts.pool.sentences)])
    return swap


def _refuse_no_module(model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"a {type(model).__name__} was given to swap: give the transformer itself, a "
            "torch.nn.Module (of a pipeline: pipe.transformer)"
        )
