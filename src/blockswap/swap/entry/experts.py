"""`open_experts` and `swap_experts`: models that are used in turn share one pool and one budget.

high   |0 |1 | ... |39 |0 |1 | ... |39 |
low                                     |0 |1 | ...    its first blocks come while 39 runs
slots   a  b   ...                                     there once, for both
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from ...ambient import undisturbed
from ...errors import ArgsError
from ...lora.request import AnyLora, Lora, as_loras
from ...plan import SwapPlan, make_plan
from ...plan.choice.budgets import ram_room
from ...plan.choice.refusals import refuse_beyond_memory
from ...plan.joint_plan import joined_facts, joined_foresight, joined_selection, parted_plans
from ...ranks.group import Ranks, ranks_of
from ...ranks.shared_weights import SharedWeights
from ...selection import BlockSwapArgs
from ...store.host_memory import most_host_bytes
from ...stream.device import Device, open_device
from ..assembly.parts import make_pool
from ..assembly.pool_members import Sharing
from ..assembly.unit_store import OwnMemory
from ..opening.found_model import FoundModel, open_found
from ..opening.from_memory import UNLIMITED
from ..opening.rank_parts import agreed_basis, refuse_other_plans
from ..opening.shared_file import SharedLoras, share_file
from ..plan_inputs.basis import Basis
from ..plan_inputs.outlook import AnyWorkload
from ..running.handle import Swap
from .arguments import as_args
from .checkpoint_file import Request, find_model
from .host_library import AnyPath, source_of
from .loaded_model import (
    Asked,
    find_loaded,
    refuse_loras_on_ranks,
    share_models,
    shared_memory,
    swap_loaded,
)
from .on_ranks import blocks_stay_in_file, loras_of


class Swaps(tuple[Swap, ...]):
    """The swaps of models that share their slots; closing the last one takes the slots away."""

    __slots__ = ()

    def close(self) -> None:
        """Closes every swap, the last opened first, whatever the closing of another raises."""
        with ExitStack() as closing:
            for swap in self:
                closing.callback(swap.close)

    def __enter__(self) -> "Swaps":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@undisturbed()
def open_experts(  # noqa: PLR0913 - each is a word of the caller's
    paths: Sequence[AnyPath],
    args: BlockSwapArgs | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device,
    dtype: torch.dtype | None = None,
    skeletons: Sequence[torch.nn.Module] | None = None,
    workload: AnyWorkload | None = None,
    loras: Sequence[Sequence[AnyLora]] | None = None,
    mesh: Any = None,
) -> tuple[torch.nn.Module, ...]:
    """Opens checkpoints of models that are used in turn, such as the two experts of Wan 2.2.

    They share slots, staging and reader threads; `vram_budget` and `ram_budget` are for all of
    them together, a list or a count is for each. Otherwise every model is as `open_transformer`
    gives it, with a `Swap` of its own, and they are closed one by one. When the turn of one ends,
    the first blocks of the next are read while its last ones run: from the second clip on, or
    where `Swap.followed_by` has told how many forwards a turn is. `loras`: a list for each.
    `mesh` as in `open_transformer`.

    Raises what `open_transformer` raises, and leaves nothing open then.
    """
    _refuse_too_few(paths, "checkpoint", "open_transformer")
    if skeletons is not None and len(skeletons) != len(paths):
        raise ArgsError(
            f"{len(skeletons)} skeletons were given for {len(paths)} checkpoints: give one for "
            "each, or none"
        )
    given: Sequence[torch.nn.Module | None] = skeletons or [None] * len(paths)
    requests = [
        Request(dtype, skeleton, workload, own)
        for skeleton, own in zip(given, _for_each(loras, len(paths)), strict=True)
    ]
    if mesh is not None:
        return _open_shared(paths, mesh, args, device, requests)
    wanted, where = as_args(args), open_device(device)
    found = [
        find_model(source_of(path), wanted, where, request)
        for path, request in zip(paths, requests, strict=True)
    ]
    joint = _Joint([model.basis for model in found])
    spare = max(0, ram_room(joint.plan, joint.facts, joint.selection, wanted)) // len(found)
    models = []
    with _opening(joint.plan, where) as (sharing, undo):
        for model, plan in zip(found, joint.plans(), strict=True):
            root = open_found(model, plan, where, spare_ram=spare, sharing=sharing)
            swap: Any = root.blockswap
            undo.callback(swap.close)
            models.append(root)
    return tuple(models)


@undisturbed()
def plan_experts(
    paths: Sequence[AnyPath],
    args: BlockSwapArgs | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device,
    workload: AnyWorkload | None = None,
    loras: Sequence[Sequence[AnyLora]] | None = None,
) -> SwapPlan:
    """The one plan for all models that `open_experts` would carry out now; opens nothing."""
    _refuse_too_few(paths, "checkpoint", "open_transformer")
    wanted, where = as_args(args), open_device(device)
    found = [
        find_model(source_of(path), wanted, where, Request(workload=workload, loras=own))
        for path, own in zip(paths, _for_each(loras, len(paths)), strict=True)
    ]
    return _Joint([model.basis for model in found]).plan


@undisturbed()
def swap_experts(
    models: Sequence[torch.nn.Module],
    args: BlockSwapArgs | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device,
    workload: AnyWorkload | None = None,
    loras: Sequence[Sequence[AnyLora]] | None = None,
    mesh: Any = None,
) -> Swaps:
    """Swaps loaded models that are used in turn, such as a pipeline's two transformers.

    As `open_experts` for models in host memory; use what it returns as a context manager or close
    it. `mesh` as in `swap_blocks`. Raises what `swap_blocks` raises, and leaves the models as they
    were.
    """
    _refuse_too_few(models, "model", "swap_blocks")
    if len({id(model) for model in models}) < len(models):
        raise ArgsError("the same model was given twice: give each model that is used in turn once")
    if mesh is not None:
        refuse_loras_on_ranks(loras)
        return _swap_all_shared(models, *share_models(models, mesh, args, device, workload))
    wanted, where = as_args(args), open_device(device)
    added = _for_each(loras, len(models))
    found = [
        find_loaded(model, wanted, where, workload, own)
        for model, own in zip(models, added, strict=True)
    ]
    joint, budget = _Joint([model.basis for model in found]), wanted.ram_budget_bytes
    spare = UNLIMITED if budget is None else (budget - joint.plan.pinned_bytes) // len(found)
    swaps = []
    with _opening(joint.plan, where) as (sharing, undo):
        for model, plan in zip(found, joint.plans(), strict=True):
            host = OwnMemory(where, plan.pinned_bytes + spare)
            swap = swap_loaded(model, plan, where, host, sharing)
            undo.callback(swap.close)
            swaps.append(swap)
    return Swaps(swaps)


@undisturbed()
def plan_loaded(
    models: Sequence[torch.nn.Module],
    args: BlockSwapArgs,
    *,
    device: str | torch.device,
    workload: AnyWorkload | None = None,
) -> SwapPlan:
    """The plan that `swap_blocks` (of one model) or `swap_experts` would carry out now."""
    where = open_device(device)
    bases = [find_loaded(model, args, where, workload).basis for model in models]
    return bases[0].plan() if len(bases) == 1 else _Joint(bases).plan


def _open_shared(
    paths: Sequence[AnyPath],
    mesh: Any,
    args: BlockSwapArgs | Mapping[str, Any] | None,
    device: str | torch.device,
    requests: Sequence[Request],
) -> tuple[torch.nn.Module, ...]:
    """`open_experts` on one rank of a mesh."""
    ranks = ranks_of(mesh)
    with ranks.together("open the checkpoints"):
        wanted, where = as_args(args), open_device(device)
        found = [
            find_model(source_of(path), wanted, where, request)
            for path, request in zip(paths, requests, strict=True)
        ]
    if blocks_stay_in_file(ranks, found, wanted):
        return _open_in_file(ranks, found, where)
    weights = [share_file(one, ranks, where) for one in found]
    models = [one.model.live.root for one in found]
    loras = [loras_of(one, ranks, own, where) for one, own in zip(found, weights, strict=True)]
    _swap_all_shared(models, ranks, weights, Asked(wanted, where, requests[0].workload), loras)
    return tuple(models)


def _open_in_file(
    ranks: Ranks, found: Sequence[FoundModel], where: Device
) -> tuple[torch.nn.Module, ...]:
    """Opens models whose blocks stay in their files, with one pool, on all ranks or on none."""
    found = [replace(one, basis=agreed_basis(ranks, one.basis)) for one in found]
    with ranks.together("plan"):
        joint = _Joint([one.basis for one in found])
    refuse_other_plans(ranks, joint.plan)
    models = []
    with _opening(joint.plan, where) as (sharing, undo), ranks.together("open the models"):
        for one, plan in zip(found, joint.plans(), strict=True):
            root = open_found(one, plan, where, spare_ram=0, sharing=sharing, ranks=ranks)
            swap: Any = root.blockswap
            undo.callback(swap.close)
            models.append(root)
    return tuple(models)


def _swap_all_shared(
    models: Sequence[torch.nn.Module],
    ranks: Ranks,
    weights: Sequence[SharedWeights],
    asked: Asked,
    loras: Sequence[SharedLoras | None] | None = None,
) -> Swaps:
    """Swaps models whose weights all ranks of the host share by now, with one pool."""
    wanted, where = asked.wanted, asked.where
    with ranks.together("find the blocks"), undisturbed():
        found = [find_loaded(model, wanted, where, asked.workload) for model in models]
    found = [replace(one, basis=agreed_basis(ranks, one.basis)) for one in found]
    with ranks.together("plan"):
        joint = _Joint([one.basis for one in found])
    swaps = []
    with _opening(joint.plan, where) as (sharing, undo):
        merging = loras or [None] * len(found)
        for one, own, plan, added in zip(found, weights, joint.plans(), merging, strict=True):
            host = shared_memory(own, ranks, one.basis, asked, added)
            swap = swap_loaded(one, plan, where, host, sharing)
            undo.callback(swap.close)
            swaps.append(swap)
    return Swaps(swaps)


class _Joint:
    """The plan for all models as one, and what it was made of."""

    def __init__(self, bases: Sequence[Basis]) -> None:
        self._bases = bases
        self.facts = joined_facts([basis.facts for basis in bases])
        self.selection = joined_selection([basis.selection for basis in bases])
        foresight = joined_foresight([basis.foresight for basis in bases])
        self.plan = make_plan(self.facts, self.selection, bases[0].args, foresight)
        refuse_beyond_memory(self.facts, self.plan, most_host_bytes())

    def plans(self) -> tuple[SwapPlan, ...]:
        """Each model's part of it."""
        return parted_plans(
            self.plan,
            [basis.facts for basis in self._bases],
            [basis.selection for basis in self._bases],
            [basis.foresight for basis in self._bases],
        )


@contextmanager
def _opening(plan: SwapPlan, where: Device) -> Iterator[tuple[Sharing, ExitStack]]:
    """The pool of the plan while models are opened; with all of them it stays, else it goes."""
    with ExitStack() as undo:
        with undisturbed():
            sharing = Sharing(make_pool(plan, where))
        sharing.pool.join()
        undo.callback(sharing.pool.leave)
        yield sharing, undo
        sharing.settle()
        undo.pop_all()
        sharing.pool.leave()  # the models hold it by now


def _refuse_too_few(given: Sequence[object], noun: str, alone: str) -> None:
    if isinstance(given, (str, os.PathLike)) or len(given) < 2:
        raise ArgsError(
            f"{_named(given)} was given for models that are used in turn: give the {noun}s of two "
            f"or more, or use {alone} for one"
        )


def _for_each(loras: Sequence[Sequence[AnyLora]] | None, count: int) -> list[tuple[Lora, ...]]:
    if loras is None:
        return [()] * count
    if isinstance(loras, (str, os.PathLike)) or len(loras) != count:
        raise ArgsError(
            f"loras={loras!r} was given for {count} models: give a list of LoRAs for each of them, "
            "[] for one without"
        )
    return [as_loras(own) for own in loras]


def _named(given: Sequence[object]) -> str:
    if isinstance(given, (str, os.PathLike)):
        return repr(os.fspath(given))
    return f"a list of {len(given)}"
