"""`swap_blocks`: checks, plan and order of steps for a model already in host memory."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...adapters.adapted import InMemory, in_memory
from ...adapters.live import LiveModel, describe_module, refuse_unloaded
from ...ambient import undisturbed
from ...errors import ArgsError, ModelError
from ...lora.file import open_lora
from ...lora.request import AnyLora, Lora, as_loras
from ...plan import SwapPlan, make_plan
from ...selection import BlockSwapArgs, select
from ...stream.device import Device, open_device
from ...stream.units.resident import Resident
from ...stream.units.unit import StreamedUnit
from ..assembly.parts import make_parts
from ..assembly.pool_members import Sharing
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
    loras: Sequence[AnyLora] | None = None,
) -> Swap:
    """Streams chosen blocks of a loaded model to `device`; everything else is put there.

    The model's weights must be in host memory and stay there: streamed blocks move unit by unit
    into pinned memory (never more than the model and about one block), residents and the rest
    are copied to the device. On the CPU nothing moves. `args` is a `BlockSwapArgs`, a dictionary
    of another pack, or None for an automatic plan.

    With a `workload` (the clip, what a forward costs, or either with a machine as `Outlook`) the
    plan knows the activations, and a `vram_budget` covers them too; where the machine's speed is
    known (`blockswap probe`) it is the fastest that fits.

    `loras`, such as `[("file.safetensors", 1.0)]`, are merged on the device whenever a block
    arrives: in fp32, in this order, as PEFT merges them. The model's own weights stay as they are.

    Use it as a context manager or call `close()`. Raises ArgsError, ModelError, PlanError,
    DeviceError or StateError, and leaves the model as it was. Output is equal to the last bit to
    that of the whole model on the same device.
    """
    wanted, where = as_args(args), open_device(device)
    found = find_loaded(model, wanted, where, workload, as_loras(loras))
    basis = found.basis
    plan = make_plan(basis.facts, basis.selection, wanted, basis.foresight)
    return swap_loaded(found, plan, where, pin_bytes=pin_budget(wanted))


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model's units, its LoRAs, and what a plan for it is made of."""

    live: LiveModel
    loras: InMemory
    basis: Basis


def find_loaded(
    model: torch.nn.Module,
    wanted: BlockSwapArgs,
    where: Device,
    workload: AnyWorkload | None,
    loras: tuple[Lora, ...] = (),
) -> LoadedModel:
    """A loaded model's units and what a plan for it is made of. Raises as `swap_blocks`."""
    if not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"a {type(model).__name__} was given to swap: give the transformer itself, a "
            "torch.nn.Module (of a pipeline: pipe.transformer)"
        )
    refuse_swapped(model)
    live = describe_module(model)
    refuse_unloaded(live)
    if loras and where.on_host:
        raise ArgsError(
            f"loras={[os.fspath(lora.path) for lora in loras]} was given for a loaded model on the "
            "CPU, where its blocks are used where they lie: open its file with open_transformer, "
            "or fuse them into the model (fuse_lora)"
        )
    added = in_memory(live, [open_lora(lora) for lora in loras])
    foresight = foresee(live, workload, where)
    notes = () if added.fitted is None else added.fitted.sentences
    facts = replace(facts_of_module(live, where, added), notes=notes)
    selection = select(wanted, live.layout)
    return LoadedModel(live, added, Basis(facts, selection, wanted, foresight))


def swap_loaded(
    found: LoadedModel,
    plan: SwapPlan,
    where: Device,
    *,
    pin_bytes: int,
    sharing: Sharing | None = None,
) -> Swap:
    """Carries out `plan`, with the slots of `sharing` if there are any.

    `pin_bytes`: most bytes of host memory to pin for streamed units, now and later.
    """
    basis, loras = found.basis, found.loras
    with ExitStack() as undo, undisturbed():
        parts = make_parts(found.live, plan, where, undo, sharing)
        streamed: dict[str, StreamedUnit] = {}
        residents: dict[str, Resident] = {}
        if not where.on_host:
            residents = place_residents(parts, loras)
            streamed = rehome(parts, plan, pin_bytes, loras)
        left = pin_bytes - plan.pinned_bytes
        forms = RamForms(parts, basis.facts, pin_budget=left, loras=loras)
        freedom = freedom_of(basis, forms)
        debug = basis.args.block_swap_debug
        swap, _ = start_engine(parts, streamed, residents, freedom, debug=debug)
        swap.keep(undo.pop_all(), [lambda: tuple(parts.pool.sentences)])
    return swap
