"""A plan for a model not loaded or a machine not at hand: what is assumed of both, and warnings."""

from dataclasses import dataclass, field, replace
from functools import cache

from ..errors import PlanError
from ..events import Counters, Measured
from ..plan import Facts, Foresight, Known, SwapPlan, make_plan, plan_in_numbers
from ..plan.inputs.foresight import Speeds, speeds_of
from ..plan.inputs.machine import Machine
from ..plan.inputs.margin import MARGIN
from ..plan.inputs.pieces import InPieces, sizes_below
from ..plan.inputs.workload import Workload
from ..plan.timing.forward_time import pipeline_of
from ..plan.timing.shared_link import RankRates, brought_best, shared_speeds
from ..predict import Companions, Generation, PhaseNeed
from ..selection import BlockSwapArgs, select
from ..units import format_bytes
from .advice import way_out
from .figures import ModelFigures

GRANULARITY_BYTES = 512  # CUDA's caching allocator


@dataclass(frozen=True, slots=True)
class Order:
    """What a forecast is asked for. `machine` None: bytes are told, seconds are not.

    Free memory is in bytes, None where it is not known; then a plan needs a budget to keep
    anything on the device. On a machine that is not at hand the streamed blocks are taken to rest
    in RAM unless a `ram_budget` is given. `rates`: of the ranks of its host that run the same
    forwards, each with such a device of its own; None: there is one.
    """

    model: ModelFigures
    workload: Workload
    machine: Machine | None = None
    args: BlockSwapArgs = field(default_factory=BlockSwapArgs)
    companions: Companions = field(default_factory=Companions)
    device_free_bytes: int | None = None
    host_free_bytes: int | None = None
    rates: RankRates | None = None

    @property
    def on_host(self) -> bool:
        return self.machine is not None and self.machine.on_host


@dataclass(frozen=True, slots=True)
class Forecast:
    """The plan, and what it was made from."""

    order: Order
    plan: SwapPlan
    generation: Generation
    foresight: Foresight

    @property
    def margin_bytes(self) -> int:
        """Left free beside the predicted peak."""
        return self.foresight.margin_bytes

    @property
    def phases(self) -> tuple[PhaseNeed, ...]:
        """What each phase of a generation needs on the device, the transformer as planned.

        Companions that run on the host have no phase there.
        """
        beside = self.order.companions
        away = {"text encoding"} if beside.text_encoder_on_host else set()
        away |= {"conditioning", "decoding"} if beside.vae_on_host else set()
        needs = self.generation.phases(self.plan.device_bytes)
        return tuple(self._as_planned(need) for need in needs if need.name not in away)

    def _as_planned(self, need: PhaseNeed) -> PhaseNeed:
        """Denoising runs as the plan has it, which may be in pieces."""
        planned = self.plan.activation_bytes
        if need.name != "denoising" or planned is None:
            return need
        return replace(need, activation_bytes=planned)

    @property
    def room_bytes(self) -> int | None:
        """What every phase must fit into on the device: the budget or what is free."""
        order = self.order
        free = order.device_free_bytes
        if order.on_host and free is None:
            free = order.host_free_bytes
        limits = (order.args.vram_budget_bytes, free)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def blocks_to_swap(self) -> int:
        """The count that other packs take for the same number of streamed blocks."""
        kinds = {unit.name: unit.kind for unit in self.order.model.units}
        return sum(kinds[name] == "block" for name in self.plan.streamed)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Phases beside denoising that need more than there is, and what helps."""
        room, order = self.room_bytes, self.order
        return tuple(
            f"{phase.name} needs {format_bytes(phase.peak_bytes)}, there is {format_bytes(room)}: "
            + way_out(phase, room, order.model.subject, order.workload, order.companions)
            for phase in self.phases
            if room is not None and phase.peak_bytes > room and phase.name != "denoising"
        )

    def foreseen(self) -> Measured | None:
        """Two forwards in the steady state as a report or a picture takes them."""
        speeds = self.foresight.speeds
        if speeds is None:
            return None
        line = pipeline_of(self.plan, speeds, on_host=self.order.on_host)
        return Measured(visits=line.visits(), counters=Counters(forwards=2))


def forecast(order: Order, known: Known | None = None) -> Forecast:
    """Plans without weights and without the machine. Raises PlanError, ArgsError, GeometryError."""
    foresight = foresee(order)
    plan = plan_of(order, foresight, known)
    if plan.chunk_tokens:
        foresight = foresight.cut(plan.chunk_tokens)
    generation = order.model.subject.generation(order.workload, order.companions)
    return Forecast(order, plan, generation, foresight)


def foresee(order: Order) -> Foresight:
    """What a forward needs and takes, whatever the plan: a pipeline's latents are counted."""
    subject, workload = order.model.subject, order.workload
    cost = subject.forward(workload)
    carried = subject.carried_bytes(workload, order.companions.text_encoder_dtype)
    activations = cost.activation_bytes + carried
    margin = MARGIN if order.machine is None else order.machine.kept_free
    speeds = _of_one_rank(order)
    if speeds is not None and order.rates is not None:
        speeds = shared_speeds(speeds, order.rates)
    tokens = subject.tokens(workload)
    if not subject.cuts:
        return Foresight(workload.words, activations, margin.of(activations), speeds)

    @cache
    def in_pieces(chunk_tokens: int) -> int:
        if chunk_tokens >= tokens:
            return activations
        return subject.in_pieces(workload, chunk_tokens) + carried

    pieces = InPieces(sizes_below(tokens), in_pieces, margin.of)
    return Foresight(workload.words, activations, margin.of(activations), speeds, pieces)


def _of_one_rank(order: Order) -> Speeds | None:
    """How fast the machine is by itself."""
    cost = order.model.subject.forward(order.workload)
    return speeds_of(cost, order.machine, order.workload.dtype, facts_of(order).units)


def plan_of(order: Order, foresight: Foresight, known: Known | None = None) -> SwapPlan:
    """The plan, where what a forward needs is known already. Raises PlanError."""
    selection = select(order.args, order.model.layout)
    plan = make_plan(facts_of(order), selection, order.args, foresight, known)
    if order.rates is None:
        return plan
    speeds = None if foresight.speeds is None else _of_one_rank(order)
    return brought_best(plan, order.rates, speeds)


def numbers_of(order: Order, foresight: Foresight, known: Known) -> SwapPlan:
    """The plan without its sentences, one of several under different budgets. Raises PlanError."""
    selection = select(order.args, order.model.layout)
    return plan_in_numbers(facts_of(order), selection, order.args, foresight, known)


def has_plan(order: Order, foresight: Foresight, known: Known | None = None) -> bool:
    """Whether anything fits; how fast it is does not matter for that."""
    try:
        numbers_of(order, replace(foresight, speeds=None), known or Known())
    except PlanError:
        return False
    return True


def facts_of(order: Order) -> Facts:
    """The model and the machine as the planner takes them."""
    model, machine = order.model, order.machine
    known_host = order.host_free_bytes is not None
    from_file = order.on_host or known_host or order.args.ram_budget is not None
    return Facts(
        label=model.label,
        device="the device" if machine is None else machine.name,
        on_host=order.on_host,
        units=model.units if from_file else model.loaded_units,
        rest_bytes=model.rest_bytes,
        device_free_bytes=order.device_free_bytes,
        host_free_bytes=order.host_free_bytes,
        granularity=GRANULARITY_BYTES,
        from_checkpoint=from_file,
        notes=model.notes,
        ranks=1 if order.rates is None else order.rates.ranks,
    )
