"""Limits a plan keeps: budgets asked, else 3 slots, 9/10 of free VRAM, 3/4 of free host memory."""

from dataclasses import dataclass, field, replace

from ...selection import BlockSwapArgs, Selection
from ...units import GIB, MIB
from ..inputs.foresight import Foresight, Speeds
from ..inputs.known import Known
from ..inputs.unit_sizes import Facts, UnitFacts
from ..swap_plan import SwapPlan
from .options import Option, option_for, options
from .tiers import HostRoom

# Prefetch two ahead: where copying takes as long as computing, two slots still wait up to 10 %.
AUTOMATIC_SLOTS = 3
# Host memory that an automatic plan leaves alone: other programs, the text encoder, page cache.
LEAST_HOST_LEFT_BYTES = 4 * GIB
# Left to activations, at least, where nothing is known of them.
LEAST_RESERVE_BYTES = 512 * MIB


@dataclass(frozen=True, slots=True)
class Question:
    """Everything a choice depends on.

    `ram_budget_bytes` is what was asked, or what an automatic plan may use (`ram_is_automatic`);
    None where nobody limits it. `known` is what was worked out when the model was asked about
    before, under other budgets.
    """

    facts: Facts
    room: HostRoom
    candidates: tuple[UnitFacts, ...]
    exact: bool
    args: BlockSwapArgs
    ram_budget_bytes: int | None = None
    ram_is_automatic: bool = False
    foresight: Foresight | None = None
    known: Known = field(default_factory=Known, compare=False, repr=False)

    @property
    def slots(self) -> int:
        """The slots asked for; three where nothing was asked, and four where ranks gather blocks.

        A slot is then in one of three ways busy: its part is copied, gathered, computed with.
        """
        ahead = self.args.copies_ahead
        return AUTOMATIC_SLOTS + (self.facts.ranks > 1) if ahead is None else ahead + 1

    @property
    def speeds(self) -> Speeds | None:
        return None if self.foresight is None else self.foresight.speeds

    @property
    def reserve_bytes(self) -> int:
        """What the workload needs beside weights and slots; 0 where no workload is known."""
        return 0 if self.foresight is None else self.foresight.reserve_bytes

    @property
    def device_budget(self) -> tuple[int, str] | None:
        """The limit asked for on the compute device, and its name.

        On the CPU both budgets mean one memory and the smaller counts; a `ram_budget` of 0 means
        there, as elsewhere, that no streamed block rests in RAM.
        """
        budgets = {"vram_budget": self.args.vram_budget_bytes}
        if self.facts.on_host:
            budgets["ram_budget"] = self.args.ram_budget_bytes or None
        given = {name: limit for name, limit in budgets.items() if limit is not None}
        if not given:
            return None
        name = min(given, key=lambda key: given[key])
        return given[name], name

    def all_streamed(self) -> Option:
        return option_for(self.facts, self.room, self.candidates)

    def offered(self) -> tuple[Option, ...]:
        return self.known.of(_Offered(self.facts, self.room, self.candidates))


@dataclass(frozen=True, slots=True)
class _Offered:
    """What the options of a question depend on."""

    facts: Facts
    room: HostRoom
    candidates: tuple[UnitFacts, ...]

    def make(self) -> tuple[Option, ...]:
        return tuple(options(self.facts, self.room, self.candidates))


def question_of(
    facts: Facts,
    selection: Selection,
    args: BlockSwapArgs,
    foresight: Foresight | None,
    known: Known | None = None,
) -> Question:
    """Gathers what was asked and what is known."""
    names = set(selection.candidates)
    automatic = _automatic_ram(facts, selection, args)
    budget = args.ram_budget_bytes if automatic is None else automatic
    return Question(
        facts=facts,
        room=_room(facts, args, budget),
        candidates=tuple(unit for unit in facts.units if unit.name in names),
        exact=selection.exact,
        args=args,
        ram_budget_bytes=budget,
        ram_is_automatic=automatic is not None,
        foresight=foresight,
        known=known or Known(),
    )


def ram_room(plan: SwapPlan, facts: Facts, selection: Selection, args: BlockSwapArgs) -> int:
    """Bytes of host memory for units of a checkpoint that come to be streamed beside the plan's.

    None is left where the plan reads everything from the file although RAM was to be had.
    """
    tiers = {unit.tier for unit in plan.units}
    if "disk" in tiers and "ram" not in tiers:
        return 0
    budget = question_of(facts, selection, args, None).ram_budget_bytes or 0
    return budget - plan.pinned_bytes - plan.staging_buffers * plan.staging_bytes * facts.ranks


def automatic_limit(question: Question, free: int) -> tuple[int, int]:
    """Of `free` bytes on the device: those for weights and slots, and those for activations.

    A tenth is left alone; activations that are not known may take a quarter.
    """
    known = question.foresight is not None
    reserve = question.reserve_bytes if known else max(LEAST_RESERVE_BYTES, free // 4)
    return free * 9 // 10 - reserve, reserve


def without_ram(question: Question) -> Question:
    """The same question with every streamed unit left in the file."""
    room = _room(question.facts, question.args, None)
    return replace(question, room=room, ram_budget_bytes=None, ram_is_automatic=False)


def _room(facts: Facts, args: BlockSwapArgs, budget: int | None) -> HostRoom:
    ahead = args.copies_ahead is None or args.copies_ahead > 0
    return HostRoom.of(facts, budget, copies_ahead=ahead)


def _automatic_ram(facts: Facts, selection: Selection, args: BlockSwapArgs) -> int | None:
    """Host memory that may hold streamed units where nothing at all was asked, else None."""
    asked = selection.exact or args.vram_budget is not None or args.ram_budget is not None
    if asked or facts.on_host or not facts.from_checkpoint or facts.host_free_bytes is None:
        return None
    left = max(LEAST_HOST_LEFT_BYTES, facts.host_free_bytes // 4)
    return max(0, facts.host_free_bytes - left)
