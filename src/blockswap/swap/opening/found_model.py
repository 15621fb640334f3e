"""A model found in its checkpoint: what a plan for it is made of, and the order of opening it."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from ...adapters.stored import StoredModel
from ...ambient import undisturbed
from ...layout.checkpoint import Checkpoint
from ...lora.file import LoraFile
from ...plan import SwapPlan
from ...plan.choice.refusals import refuse_beyond_memory
from ...store.host_memory import most_host_bytes
from ...stream.device import Device
from ...stream.model.idle_weights import mark_idle
from ..assembly.parts import make_parts
from ..assembly.pool_members import Sharing
from ..assembly.table_rows import table_sentences
from ..guards.closed_model import refuse_closed, reopened
from ..plan_inputs.basis import Basis
from ..running.freedom import freedom_of
from .engine_start import start_engine
from .from_file import Opening


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A checkpoint and the skeleton it fills, what a plan is made of, and what was assumed."""

    checkpoint: Checkpoint
    model: StoredModel
    basis: Basis
    assumed: tuple[str, ...]
    loras: tuple[LoraFile, ...] = ()


def plan_found(found: FoundModel) -> SwapPlan:
    """The plan for it now. Raises PlanError."""
    basis = found.basis
    plan = basis.plan()
    refuse_beyond_memory(basis.facts, plan, most_host_bytes())
    return plan


def open_found(
    found: FoundModel,
    plan: SwapPlan,
    where: Device,
    *,
    spare_ram: int,
    sharing: Sharing | None = None,
    opener: str = "open_transformer",
) -> torch.nn.Module:
    """Carries out `plan`, with the slots of `sharing` if there are any; the running model.

    `spare_ram`: bytes of host memory that units may take which come to be streamed later.
    `opener`: what is called to open it again.
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
        closing.callback(refuse_closed, root, found.checkpoint.label, opener)
        closing.push(undo.pop_all())
        told = [
            lambda: found.assumed,
            lambda: tuple(parts.pool.sentences),
            lambda: opening.reading_sentences(swap),
            lambda: table_sentences(model.live.tables),
        ]
        swap.keep(closing, told, opening.merged_loras(found.loras, residents))
    return root
