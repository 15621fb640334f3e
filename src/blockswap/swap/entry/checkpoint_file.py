"""`open_transformer`: a model streamed from its file; checks, assumptions, order of opening."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...adapters.adapted import fit_model, with_loras
from ...adapters.live import places_of
from ...adapters.skeleton import build_skeleton
from ...adapters.stored import StoredModel, match_checkpoint
from ...ambient import undisturbed
from ...errors import ArgsError, GeometryError
from ...layout.checkpoint import Checkpoint, open_checkpoint
from ...layout.formats import quantiser_keys, unpacked
from ...layout.geometry import infer_geometry, name_variant, to_original_key
from ...layout.geometry.stated import stated_by
from ...lora.file import LoraFile, open_lora
from ...lora.request import AnyLora, Lora, as_loras
from ...plan import SwapPlan, make_plan
from ...plan.choice.budgets import ram_room
from ...plan.choice.refusals import refuse_beyond_memory
from ...ranks.group import ranks_of
from ...selection import BlockSwapArgs, select
from ...store.host_memory import most_host_bytes
from ...stream.device import Device, open_device
from ...stream.model.idle_weights import mark_idle
from ..assembly.parts import make_parts
from ..assembly.pool_members import Sharing
from ..guards.closed_model import refuse_closed, reopened
from ..opening.engine_start import start_engine
from ..opening.from_file import Opening
from ..opening.shared_file import share_file
from ..plan_inputs.basis import Basis
from ..plan_inputs.model_bytes import facts_of_checkpoint
from ..plan_inputs.outlook import AnyWorkload, foresee
from ..running.freedom import freedom_of
from .arguments import as_args, refuse_swapped
from .loaded_model import Asked, refuse_loras_on_ranks, swap_shared


@undisturbed()
def open_transformer(  # noqa: PLR0913  (all but two by name: the door is one call)
    path: str | os.PathLike[str],
    args: BlockSwapArgs | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device,
    dtype: torch.dtype | None = None,
    skeleton: torch.nn.Module | None = None,
    workload: AnyWorkload | None = None,
    loras: Sequence[AnyLora] | None = None,
    mesh: Any = None,
) -> torch.nn.Module:
    """Opens a Wan checkpoint with its blocks streamed from the file; reads only what stays.

    `path` is a `.safetensors` file, an index, or a folder, in original or diffusers names. The
    model is diffusers' Wan class for the file's geometry, or `skeleton`: a module of yours with
    its parameters on the meta device. Without `dtype` it computes in the dtype that most of the
    file has, bit for bit as diffusers' `from_pretrained(torch_dtype=...)` of that dtype (layers
    of your own: in what is stored); with it, weights are cast on the device each time they
    arrive. `workload` and `loras` are those of `swap_blocks`.

    With a `mesh` every rank of it makes this call: the file is read once a host, into memory that
    all ranks of the host share, as it computes, and blocks are streamed from there.

    The model's `blockswap` attribute is its `Swap`: plan, report, `close()`. Raises
    CheckpointError, ArgsError, ModelError, PlanError or DeviceError.
    """
    if mesh is not None:
        refuse_loras_on_ranks(loras)
        ranks = ranks_of(mesh)
        with ranks.together("open the checkpoint"):
            wanted, where = as_args(args), open_device(device)
            found = find_model(path, wanted, where, Request(dtype, skeleton))
        root = found.model.live.root
        weights = share_file(found.model, found.checkpoint.headers, ranks)
        swap_shared(root, ranks, weights, Asked(wanted, where, workload))
        return root
    wanted, where = as_args(args), open_device(device)
    asked = Request(dtype=dtype, skeleton=skeleton, workload=workload, loras=as_loras(loras))
    found = find_model(path, wanted, where, asked)
    plan = _plan_for(found)
    spare = ram_room(plan, found.basis.facts, found.basis.selection, wanted)
    return open_found(found, plan, where, spare_ram=spare)


@undisturbed()
def plan_transformer(
    path: str | os.PathLike[str],
    args: BlockSwapArgs | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device,
    loras: Sequence[AnyLora] | None = None,
) -> SwapPlan:
    """The plan that `open_transformer` would carry out now; raises what it would, opens nothing."""
    wanted, where = as_args(args), open_device(device)
    found = find_model(path, wanted, where, Request(loras=as_loras(loras)))
    return _plan_for(found)


def _plan_for(found: "FoundModel") -> SwapPlan:
    basis = found.basis
    plan = make_plan(basis.facts, basis.selection, basis.args, basis.foresight)
    refuse_beyond_memory(basis.facts, plan, most_host_bytes())
    return plan


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A checkpoint and the skeleton it fills, what a plan is made of, and what was assumed."""

    checkpoint: Checkpoint
    model: StoredModel
    basis: Basis
    assumed: tuple[str, ...]
    loras: tuple[LoraFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked of a checkpoint's model beside how it is swapped; see `open_transformer`."""

    dtype: torch.dtype | None = None
    skeleton: torch.nn.Module | None = None
    workload: AnyWorkload | None = None
    loras: tuple[Lora, ...] = ()


def find_model(
    path: str | os.PathLike[str], wanted: BlockSwapArgs, where: Device, asked: Request
) -> FoundModel:
    """Matches a checkpoint with its model, and gathers what a plan for it is made of.

    Raises ArgsError, CheckpointError or ModelError.
    """
    _check_dtype(asked.dtype)
    if asked.skeleton is not None:
        refuse_swapped(asked.skeleton)
    checkpoint = _as_weights(open_checkpoint(path), asked.skeleton)
    files = [open_lora(lora) for lora in asked.loras]
    model, assumed = _matched(checkpoint, asked.skeleton, asked.dtype, wanted.block_lists)
    notes: tuple[str, ...] = ()
    if files:
        fitted = fit_model(model.live, files)
        model, checkpoint = with_loras(model, checkpoint, fitted)
        notes = fitted.sentences
    facts = replace(facts_of_checkpoint(model, where), notes=notes)
    basis = Basis(
        facts=facts,
        selection=select(wanted, model.live.layout),
        args=wanted,
        foresight=foresee(model.live, asked.workload, where, facts.units),
    )
    return FoundModel(checkpoint, model, basis, assumed, tuple(files))


def open_found(
    found: FoundModel,
    plan: SwapPlan,
    where: Device,
    *,
    spare_ram: int,
    sharing: Sharing | None = None,
) -> torch.nn.Module:
    """Carries out `plan`, with the slots of `sharing` if there are any; the running model.

    `spare_ram`: bytes of host memory that units may take which come to be streamed later.
    """
    model, root, basis = found.model, found.model.live.root, found.basis
    with ExitStack() as undo, undisturbed():
        parts = make_parts(model.live, plan, where, undo, sharing)
        opening = Opening(parts, model, found.checkpoint)
        opening.load_rest()
        residents = opening.load_residents()
        freedom = freedom_of(basis, opening.forms(basis.facts, spare_ram))
        movable = frozenset() if freedom is None else freedom.movable
        streamed = opening.ram_units() | opening.disk_units(movable)
        debug = basis.args.block_swap_debug
        swap, hooks = start_engine(parts, streamed, residents, freedom, debug=debug)
        opening.refuse_saving(hooks, swap)
        placed = [tensor for unit in model.live.units for tensor in unit.tensors]
        mark_idle(undo, [(tensor.places[0].label, tensor.tensor) for tensor in placed])
        reopened(root)
        closing = ExitStack()
        closing.callback(refuse_closed, root, found.checkpoint.label)
        closing.push(undo.pop_all())
        told = [
            lambda: found.assumed,
            lambda: tuple(parts.pool.sentences),
            lambda: opening.reading_sentences(swap),
        ]
        swap.keep(closing, told, opening.merged_loras(found.loras, residents))
    return root


def _check_dtype(dtype: object) -> None:
    if dtype is None:
        return
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1:
        return
    raise ArgsError(
        f"dtype={dtype!r} was asked, and weights compute in floating point of 16 bits or "
        "more: give a torch dtype such as torch.bfloat16, or none for the file's own"
    )


def _as_weights(checkpoint: Checkpoint, skeleton: torch.nn.Module | None) -> Checkpoint:
    """The file as weights; as it is where layers of the skeleton's own know what quantised it."""
    beside = quantiser_keys(checkpoint)
    if skeleton is not None and beside:
        known = {to_original_key(place.label) for place in places_of(skeleton)}
        if any(to_original_key(key) in known for key in beside):
            return checkpoint
    return unpacked(checkpoint)


def _matched(
    checkpoint: Checkpoint,
    skeleton: torch.nn.Module | None,
    dtype: torch.dtype | None,
    block_lists: Sequence[str],
) -> tuple[StoredModel, tuple[str, ...]]:
    """The skeleton with the checkpoint behind it, and what had to be assumed about it."""
    assumed = checkpoint.notes
    if skeleton is None:
        geometry = infer_geometry(checkpoint)
        if geometry.extras:
            raise GeometryError(
                f"{checkpoint.label} is quantised ({len(geometry.extras)} scales such as "
                f"{geometry.extras[0]}), and diffusers' Wan class computes without scales: open a "
                "bf16, fp16 or fp32 checkpoint, or give a skeleton that knows the scales"
            )
        skeleton = build_skeleton(geometry)
        if name_variant(geometry) is None and not stated_by(checkpoint).says_heads:
            assumed += (
                f"{checkpoint.label} is no published model and does not state its heads: "
                f"{geometry.num_heads} of {geometry.head_dim} are assumed, as wide as Wan's (put "
                "wan.num_heads in its metadata otherwise)",
            )
    return match_checkpoint(skeleton, checkpoint, dtype, block_lists), assumed
