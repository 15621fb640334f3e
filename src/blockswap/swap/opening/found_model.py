"""A model found in its checkpoint: what a plan for it is made of, and the order of opening it."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from ...adapters.stored import StoredModel
from ...ambient import undisturbed
from ...layout.checkpoint import Checkpoint
from ...lora.file import LoraFile
from ...lora.request import Lora
from ...plan import SwapPlan
from ...plan.choice.budgets import ram_room
from ...plan.choice.refusals import refuse_beyond_memory
from ...ranks.group import Ranks, together_or_alone
from ...ranks.reading import ReadByOne
from ...ranks.same_model import refuse_other_files
from ...store.host_memory import most_host_bytes
from ...stream.device import Device
from ...stream.model.idle_weights import mark_idle
from ..assembly.parts import make_parts
from ..assembly.pool_members import Sharing
from ..assembly.table_rows import table_sentences
from ..guards.closed_model import refuse_closed, reopened
from ..plan_inputs.basis import Basis
from ..running.freedom import freedom_of
from ..running.handle import Swap
from .engine_start import start_engine
from .from_file import Opening
from .plan_again import plan_in_pool
from .rank_parts import agreed_basis, in_parts, refuse_other_plans


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A checkpoint and the skeleton it fills, what a plan is made of, and what was assumed."""

    checkpoint: Checkpoint
    model: StoredModel
    basis: Basis
    assumed: tuple[str, ...]
    loras: tuple[LoraFile, ...] = ()
    with_loras: "WithLoras | None" = None


# The model with other LoRAs: raises where they do not fit, else gives what finds it when it is
# closed (what is free then is part of its plan).
WithLoras = Callable[[tuple[Lora, ...]], Callable[[], FoundModel]]


def plan_found(found: FoundModel) -> SwapPlan:
    """The plan for it now. Raises PlanError."""
    basis = found.basis
    plan = basis.plan()
    refuse_beyond_memory(basis.facts, plan, most_host_bytes())
    return plan


def open_planned(
    found: FoundModel, where: Device, *, opener: str = "open_transformer", swap: Swap | None = None
) -> torch.nn.Module:
    """Plans it and carries the plan out; as `open_found`."""
    plan, basis = plan_found(found), found.basis
    spare = ram_room(plan, basis.facts, basis.selection, basis.args)
    return open_found(found, plan, where, spare_ram=spare, opener=opener, swap=swap)


def open_found(  # noqa: PLR0913 - all but three by name
    found: FoundModel,
    plan: SwapPlan,
    where: Device,
    *,
    spare_ram: int,
    sharing: Sharing | None = None,
    opener: str = "open_transformer",
    swap: Swap | None = None,
    ranks: Ranks | None = None,
) -> torch.nn.Module:
    """Carries out `plan`, with the slots of `sharing` if there are any; the running model.

    `spare_ram`: bytes of host memory that units may take which come to be streamed later.
    `opener`: what is called to open it again. `swap`: the handle of a model opened anew.
    `ranks`: those that do the same.
    """
    model, root, basis = found.model, found.model.live.root, found.basis
    with ExitStack() as undo, undisturbed():
        parts, reading = make_parts(model.live, plan, where, undo, sharing), None
        if ranks is not None:
            parts, reading = in_parts(parts, ranks, None, basis), ReadByOne(ranks, where)
        opening = Opening(parts, model, found.checkpoint, reading)
        opening.load_rest()
        residents = opening.load_residents()
        freedom = None
        if ranks is None:  # ranks stay with one plan, in which they do the same
            freedom = freedom_of(basis, opening.forms(basis.facts, spare_ram))
        movable = frozenset() if freedom is None else freedom.movable
        streamed = opening.ram_units() | opening.disk_units(movable)
        if ranks is not None:
            opening.compare_hosts(ranks)
        debug = basis.args.block_swap_debug
        swap, hooks = start_engine(parts, streamed, residents, freedom, debug=debug, swap=swap)
        opening.refuse_saving(hooks, swap)
        if ranks is not None:
            opening.watch_hosts(ranks, hooks, swap.spoil)
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
        again, merged = None, opening.merged_loras(found.loras, residents)
        if found.with_loras is not None:
            again = _Again(
                found, found.with_loras, plan, where, spare_ram, sharing, opener, ranks
            ).with_loras
        swap.keep(closing, told, merged, again, ranks)
    return root


@dataclass(frozen=True, slots=True)
class _Again:
    """How a model is opened anew with other LoRAs, as it was opened first."""

    found: FoundModel
    other: WithLoras
    plan: SwapPlan
    where: Device
    spare_ram: int
    sharing: Sharing | None
    opener: str
    ranks: Ranks | None

    def with_loras(self, loras: tuple[Lora, ...]) -> Callable[[Swap], None]:
        find = self.other(loras)

        def open_again(swap: Swap) -> None:
            # Ranks stay with the plan that they began with, and tell anew how they carry it out.
            before = swap.plan if self.ranks is None else self.plan
            try:
                with together_or_alone(self.ranks, "open the model with other LoRAs"):
                    self._open(find(), before, swap)
            except BaseException:
                self._as_before(before, swap)
                raise

        return open_again

    def _open(self, found: FoundModel, before: SwapPlan, swap: Swap) -> None:
        if self.ranks is not None:
            refuse_other_files(self.ranks, found.checkpoint.headers)
            found = replace(found, basis=agreed_basis(self.ranks, found.basis))
        if self.sharing is None and self.ranks is None:
            open_planned(found, self.where, opener=self.opener, swap=swap)
            return
        if self.sharing is None:
            self._carry_out(found, plan_found(found), swap)
            return
        notes = self.found.basis.facts.notes
        plan = plan_in_pool(before, found.basis.facts, self.sharing.pool.sizes, notes)
        self._carry_out(found, plan, swap)

    def _as_before(self, before: SwapPlan, swap: Swap) -> None:
        model = replace(self.found.model, live=self.found.model.live.as_it_hangs())
        self._carry_out(replace(self.found, model=model), before, swap)

    def _carry_out(self, found: FoundModel, plan: SwapPlan, swap: Swap) -> None:
        if self.ranks is not None:
            refuse_other_plans(self.ranks, plan)
        open_found(
            found,
            plan,
            self.where,
            spare_ram=self.spare_ram,
            sharing=self.sharing,
            opener=self.opener,
            swap=swap,
            ranks=self.ranks,
        )
