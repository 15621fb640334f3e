"""`swap_blocks`: checks, plan and order of steps for a model already in host memory."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from ...adapters.live import LiveModel, describe_module, refuse_unloaded
from ...ambient import undisturbed
from ...errors import ModelError
from ...plan import SwapPlan, make_plan
from ...selection import BlockSwapArgs, select
from ...stream.device import Device, open_device
from ...stream.units.resident import Resident
from ...stream.units.unit import StreamedUnit
from ..assembly.parts import make_parts
from ..assembly.pool_members import Sharing
from ..assembly.table_rows import table_sentences
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
            residents = place_residents(parts)
            streamed = rehome(parts, plan, pin_bytes)
        forms = RamForms(parts, basis.facts, pin_budget=pin_bytes - plan.pinned_bytes)
        freedom = freedom_of(basis, forms)
        debug = basis.args.block_swap_debug
        swap, _ = start_engine(parts, streamed, residents, freedom, debug=debug)
        told = [lambda: tuple(parts.pool.sentences), lambda: table_sentences(live.tables)]
        swap.keep(undo.pop_all(), told)
    return swap
