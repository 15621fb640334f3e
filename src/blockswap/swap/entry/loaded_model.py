"""`swap_blocks`: checks, plan and order of steps for a model already in host memory."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ...adapters.adapted import InMemory, fit_model, in_memory
from ...adapters.live import LiveModel, describe_module, refuse_self_quantising, refuse_unloaded
from ...ambient import undisturbed
from ...errors import ArgsError, ModelError
from ...lora.file import open_lora
from ...lora.request import AnyLora, Lora, as_loras
from ...plan import SwapPlan
from ...ranks.group import Ranks, ranks_of
from ...ranks.shared_weights import SharedWeights, share_weights
from ...selection import BlockSwapArgs, select
from ...stream.device import Device, open_device
from ...stream.model.hooks import Hooks
from ...stream.units.resident import Resident
from ...stream.units.unit import StreamedUnit
from ..assembly.device_slabs import merged_leaves
from ..assembly.parts import make_parts
from ..assembly.pool_members import Sharing
from ..assembly.table_rows import table_sentences
from ..assembly.unit_store import HostMemory, OwnMemory, SharedMemory, Together
from ..guards.closed_model import is_refused
from ..guards.cuda_graphs import refuse_cuda_graphs
from ..opening.engine_start import start_engine
from ..opening.from_memory import pin_budget, place_residents, rehome
from ..opening.plan_again import plan_in_pool
from ..opening.rank_parts import agreed_basis, in_parts
from ..opening.shared_file import SharedLoras
from ..plan_inputs.basis import Basis
from ..plan_inputs.model_bytes import facts_of_module
from ..plan_inputs.outlook import AnyWorkload, foresee
from ..running.departures import RamForms
from ..running.freedom import freedom_of
from ..running.handle import Swap
from ..running.merged_loras import MergedLoras
from .arguments import as_args, refuse_swapped


@undisturbed()
def swap_blocks(
    model: torch.nn.Module,
    args: BlockSwapArgs | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device,
    workload: AnyWorkload | None = None,
    loras: Sequence[AnyLora] | None = None,
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

    `loras`, such as `[("file.safetensors", 1.0)]`, are merged on the device whenever a block
    arrives: in fp32, in this order, as PEFT merges them. The model's own weights stay as they are.
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
        refuse_loras_on_ranks(loras)
        ranks, (weights,), asked = share_models([model], mesh, args, device, workload)
        return swap_shared(model, ranks, weights, asked)
    wanted, where = as_args(args), open_device(device)
    found = find_loaded(model, wanted, where, workload, as_loras(loras))
    basis = found.basis
    plan = basis.plan()
    return swap_loaded(found, plan, where, OwnMemory(where, pin_budget(wanted)))


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model's units, its LoRAs, and what a plan for it is made of."""

    live: LiveModel
    loras: InMemory
    basis: Basis
    workload: AnyWorkload | None = None

    def with_loras(self, loras: tuple[Lora, ...], where: Device) -> "LoadedModel":
        """The closed model with other LoRAs, whose factors are in memory then."""
        live = self.live.as_it_hangs()
        return _with_loras(live, self.basis.args, where, self.workload, loras)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller asked for, after the checks."""

    wanted: BlockSwapArgs
    where: Device
    workload: AnyWorkload | None


def share_models(
    models: Sequence[torch.nn.Module],
    mesh: Any,
    args: BlockSwapArgs | Mapping[str, Any] | None,
    device: str | torch.device,
    workload: AnyWorkload | None,
) -> tuple[Ranks, list[SharedWeights], Asked]:
    """What a rank of `mesh` does first: the checks, then weights that rest once for all ranks."""
    ranks = ranks_of(mesh)
    with ranks.together("check what was asked"):
        wanted, where = as_args(args), open_device(device)
        lives = [_live_of(model, wanted) for model in models]
    weights = [share_weights(live, ranks) for live in lives]
    return ranks, weights, Asked(wanted, where, workload)


def swap_shared(
    model: torch.nn.Module,
    ranks: Ranks,
    weights: SharedWeights,
    asked: Asked,
    loras: SharedLoras | None = None,
) -> Swap:
    """Swaps a model whose weights all ranks of the host share by now; `loras` may be merged in."""
    wanted, where = asked.wanted, asked.where
    with ranks.together("find the blocks"), undisturbed():
        found = find_loaded(model, wanted, where, asked.workload)
    basis = agreed_basis(ranks, found.basis)
    with ranks.together("plan"), undisturbed():
        plan = basis.plan()
    host = shared_memory(weights, ranks, basis, asked, loras)
    return swap_loaded(replace(found, basis=basis), plan, where, host)


def shared_memory(
    weights: SharedWeights, ranks: Ranks, basis: Basis, asked: Asked, loras: SharedLoras | None
) -> SharedMemory:
    """Where the units of a model of several ranks rest, and how the ranks bring them."""
    others = partial(in_parts, ranks=ranks, memory=weights.memory, basis=basis)
    merging = None if loras is None else loras.with_loras
    pinned = pin_budget(asked.wanted)
    return SharedMemory(weights, asked.where, pinned, others, Together(ranks, merging))


def find_loaded(
    model: torch.nn.Module,
    wanted: BlockSwapArgs,
    where: Device,
    workload: AnyWorkload | None,
    loras: tuple[Lora, ...] = (),
) -> LoadedModel:
    """A loaded model's units and what a plan for it is made of. Raises as `swap_blocks`."""
    live = _live_of(model, wanted)
    refuse_unloaded(live)
    _refuse_on_host(loras, where)
    if not where.on_host:
        refuse_self_quantising(live)
        refuse_cuda_graphs([model], live.layout.label)
    return _with_loras(live, wanted, where, workload, loras)


def _live_of(model: torch.nn.Module, wanted: BlockSwapArgs) -> LiveModel:
    _refuse_other(model)
    refuse_swapped(model)
    return describe_module(model, wanted.block_lists)


def _refuse_on_host(loras: tuple[Lora, ...], where: Device) -> None:
    if loras and where.on_host:
        raise ArgsError(
            f"loras={[os.fspath(lora.path) for lora in loras]} was given for a loaded model on "
            "the CPU, where its blocks are used where they lie: open its file with "
            "open_transformer, or fuse them into the model (fuse_lora)"
        )


def _with_loras(
    live: LiveModel,
    wanted: BlockSwapArgs,
    where: Device,
    workload: AnyWorkload | None,
    loras: tuple[Lora, ...],
) -> LoadedModel:
    added = in_memory(live, [open_lora(lora) for lora in loras])
    foresight = foresee(live, workload, where)
    notes = () if added.fitted is None else added.fitted.sentences
    facts = replace(facts_of_module(live, where, added), notes=notes)
    selection = select(wanted, live.layout)
    return LoadedModel(live, added, Basis(facts, selection, wanted, foresight), workload)


def swap_loaded(
    found: LoadedModel,
    plan: SwapPlan,
    where: Device,
    host: HostMemory,
    sharing: Sharing | None = None,
    swap: Swap | None = None,
) -> Swap:
    """Carries out `plan` from the memory of `host`, with the slots of `sharing` if there are.

    `swap`: the handle of a model that is swapped anew.
    """
    basis, loras = found.basis, found.loras
    with ExitStack() as undo, undisturbed():
        if not where.on_host:
            host.hold(undo)
        parts = host.with_others(make_parts(found.live, plan, where, undo, sharing))
        streamed: dict[str, StreamedUnit] = {}
        residents: dict[str, Resident] = {}
        if not where.on_host:
            residents = place_residents(parts, loras)
            streamed = rehome(parts, plan, host, loras)
        freedom = None
        if parts.brought is None:  # ranks that bring blocks in parts stay with one plan
            freedom = freedom_of(basis, RamForms(parts, basis.facts, host, loras))
        debug = basis.args.block_swap_debug
        swap, hooks = start_engine(parts, streamed, residents, freedom, debug=debug, swap=swap)
        _refuse_saving(found, hooks, swap)
        told = [
            lambda: (*host.sentences, *parts.pool.sentences),
            lambda: table_sentences(parts.live.tables),
        ]
        again, ranks = None, None
        if isinstance(host, OwnMemory):
            again = _Again(found, where, host, sharing).with_loras
        elif isinstance(host, SharedMemory):
            ranks = host.together.ranks
            if host.together.merging is not None:
                again = _Refilled(found, plan, where, host, sharing).with_loras
        swap.keep(undo.pop_all(), told, _merged_loras(found, where, residents), again, ranks)
    return swap


@dataclass(frozen=True, slots=True)
class _Again:
    """How a loaded model is swapped anew with other LoRAs, as it was swapped first."""

    found: LoadedModel
    where: Device
    host: HostMemory
    sharing: Sharing | None

    def with_loras(self, loras: tuple[Lora, ...]) -> Callable[[Swap], None]:
        _refuse_on_host(loras, self.where)
        fit_model(self.found.live, [open_lora(lora) for lora in loras])

        def swap_again(swap: Swap) -> None:
            before = swap.plan
            try:
                found = self.found.with_loras(loras, self.where)
                plan = self._plan(found, before)
                swap_loaded(found, plan, self.where, self.host, self.sharing, swap)
            except BaseException:
                found = replace(self.found, live=self.found.live.as_it_hangs())
                swap_loaded(found, before, self.where, self.host, self.sharing, swap)
                raise

        return swap_again

    def _plan(self, found: LoadedModel, before: SwapPlan) -> SwapPlan:
        if self.sharing is None:
            return found.basis.plan()
        notes = self.found.basis.facts.notes
        return plan_in_pool(before, found.basis.facts, self.sharing.pool.sizes, notes)


@dataclass(frozen=True, slots=True)
class _Refilled:
    """How a model of several ranks is swapped anew once other LoRAs are in what they share."""

    found: LoadedModel
    plan: SwapPlan
    where: Device
    host: SharedMemory
    sharing: Sharing | None

    def with_loras(self, loras: tuple[Lora, ...]) -> Callable[[Swap], None]:
        merging = self.host.together.merging
        assert merging is not None, "asked for where there is"
        merge = merging(loras)

        def swap_again(swap: Swap) -> None:
            try:
                merge()
            finally:
                if not is_refused(self.found.live.root):
                    swap_loaded(self.found, self.plan, self.where, self.host, self.sharing, swap)

        return swap_again


def _refuse_saving(found: LoadedModel, hooks: Hooks, swap: Swap) -> None:
    """A streamed block shows its own weights, and one that stays those with LoRAs: not both."""
    if found.loras.fitted is None:
        return
    hooks.refuse_state_dict(
        {u.layout.name: u.module for u in found.live.units if found.loras.decoding(u) is not None},
        swap.streams,
        f"the weights of {found.live.layout.label} were to be saved while LoRAs are added to them "
        "as its blocks arrive, and what lies in memory is partly with and partly without them: "
        "close the swap, then save the model",
    )


def _merged_loras(
    found: LoadedModel, where: Device, residents: Mapping[str, Resident]
) -> MergedLoras | None:
    loras, fitted = found.loras, found.loras.fitted
    if fitted is None:
        return None
    merged = MergedLoras(
        fitted.files,
        found.live,
        where,
        merged=lambda _, tensors: merged_leaves(tensors, loras, where.torch_device),
        changes=lambda tensor: loras.form(tensor) is not None,
    )
    merged.stay(residents)
    return merged


def refuse_loras_on_ranks(loras: Sequence[Any] | None) -> None:
    """Raises ArgsError: ranks share the model's weights as they are."""
    if loras:
        raise ArgsError(
            "loras= and mesh= were given together, and ranks share the model's weights alone: "
            "open its file with open_transformer, merge the LoRAs into the model (fuse_lora), or "
            "load them beside it afterwards"
        )


def _refuse_other(model: object) -> None:
    """Raises ModelError for what is no module, and for a wrapper that moves whole ones."""
    if not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"a {type(model).__name__} was given to swap: give the transformer itself, a "
            "torch.nn.Module (of a pipeline: pipe.transformer)"
        )
    if isinstance(model, torch.nn.DataParallel) and model.device_ids:
        raise ModelError(
            "a DataParallel was given to swap, which wants the whole model on its first device in "
            "every forward: give the model inside it, model.module.to('cpu'), and run that"
        )
