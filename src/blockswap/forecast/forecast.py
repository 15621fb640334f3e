"""One forecast: a model's figures, a clip, a machine and a wish become a plan with its reasons."""

from dataclasses import dataclass, field, replace

from ..errors import PlanError
from ..events import Counters, Measured
from ..plan import Facts, Foresight, Speeds, SwapPlan, make_plan
from ..plan.foresight import pipeline_of
from ..plan.machine import Machine
from ..plan.workload import ForwardCost, Workload
from ..predict import (
    MARGIN,
    NO_MARGIN,
    Companions,
    Generation,
    PhaseNeed,
    predict_generation,
)
from ..selection import BlockSwapArgs, select
from ..units import format_bytes
from .figures import ModelFigures

GRANULARITY_BYTES = 512  # CUDA's caching allocator


@dataclass(frozen=True, slots=True)
class Order:
    """What a forecast is asked for. `machine` None: bytes are told, seconds are not.

    Free memory is in bytes, None where it is not known; then a plan needs a budget to keep
    anything on the device. On a machine that is not at hand the streamed blocks are taken to rest
    in RAM unless a `ram_budget` is given.
    """

    model: ModelFigures
    workload: Workload
    machine: Machine | None = None
    args: BlockSwapArgs = field(default_factory=BlockSwapArgs)
    companions: Companions = field(default_factory=Companions)
    device_free_bytes: int | None = None
    host_free_bytes: int | None = None

    @property
    def on_host(self) -> bool:
        return self.machine is not None and self.machine.on_host


@dataclass(frozen=True, slots=True)
class Forecast:
    """The plan, and what it was made from. `speeds` are None where the machine is not known.

    `margin_bytes` is left free beside the predicted peak.
    """

    order: Order
    plan: SwapPlan
    generation: Generation
    margin_bytes: int
    speeds: Speeds | None

    @property
    def phases(self) -> tuple[PhaseNeed, ...]:
        """What each phase of a generation needs on the device, the transformer as planned."""
        return tuple(self.generation.phases(self.plan.device_bytes))

    @property
    def blocks_to_swap(self) -> int:
        """The count that other packs take for the same number of streamed blocks."""
        kinds = {unit.name: unit.kind for unit in self.order.model.units}
        return sum(kinds[name] == "block" for name in self.plan.streamed)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Phases beside denoising that need more than there is, and what helps."""
        room = self.order.args.vram_budget_bytes or self.order.device_free_bytes
        helps = {"decoding": "let the VAE work in tiles", "conditioning": "let the VAE tile"}
        return tuple(
            f"{phase.name} needs {format_bytes(phase.peak_bytes)}, there is {format_bytes(room)}: "
            + helps.get(phase.name, "run the text encoder on the CPU or in fp8")
            for phase in self.phases
            if room is not None and phase.peak_bytes > room and phase.name != "denoising"
        )

    def foreseen(self) -> Measured | None:
        """Two forwards in the steady state as a report or a picture takes them."""
        if self.speeds is None:
            return None
        line = pipeline_of(self.plan, self.speeds, on_host=self.order.on_host)
        return Measured(visits=line.visits(), counters=Counters(forwards=2))


def forecast(order: Order) -> Forecast:
    """Plans without weights and without the machine. Raises PlanError, ArgsError, GeometryError."""
    generation = generation_of(order)
    return planned(order, generation, speeds_of(order, generation.denoising))


def generation_of(order: Order) -> Generation:
    """What the whole generation costs, whatever the plan."""
    return predict_generation(order.model.geometry, order.workload, order.companions)


def planned(order: Order, generation: Generation, speeds: Speeds | None) -> Forecast:
    """The forecast, where what the generation costs is known already."""
    activations = generation.denoising.activation_bytes + generation.carried_bytes
    margin = (NO_MARGIN if order.on_host else MARGIN).of(activations)
    foresight = Foresight(say_workload(order.workload), activations, margin, speeds)
    selection = select(order.args, order.model.layout)
    plan = make_plan(facts_of(order), selection, order.args, foresight)
    return Forecast(order, plan, generation, margin, speeds)


def has_plan(order: Order) -> bool:
    """Whether anything fits; how fast it is does not matter for that."""
    try:
        planned(order, generation_of(order), None)
    except PlanError:
        return False
    return True


def speeds_of(order: Order, cost: ForwardCost) -> Speeds | None:
    """Seconds of every unit on the order's machine; None where its rate is not known."""
    machine = order.machine
    if machine is None:
        return None
    seconds: dict[str, float] = {}
    for name, flops in (*cost.unit_flops, ("", cost.rest_flops)):
        found = machine.compute_seconds(flops, order.workload.dtype)
        if found is None:
            return None
        seconds[name] = found
    rest = seconds.pop("")
    disk = None if machine.disk is None else machine.disk.bytes_per_second
    return Speeds(seconds, rest, machine.pinned_link, disk)


def facts_of(order: Order) -> Facts:
    """The model and the machine as the planner takes them."""
    model, machine = order.model, order.machine
    known_host = order.host_free_bytes is not None
    from_file = order.on_host or known_host or order.args.ram_budget is not None
    units = model.units
    if not from_file:
        units = tuple(replace(unit, disk_slab_bytes=None, decode_bytes=0) for unit in units)
    return Facts(
        label=model.label,
        device="the device" if machine is None else machine.name,
        on_host=order.on_host,
        units=units,
        rest_bytes=model.rest_bytes,
        device_free_bytes=order.device_free_bytes,
        host_free_bytes=order.host_free_bytes,
        granularity=GRANULARITY_BYTES,
        from_checkpoint=from_file,
    )


def say_workload(workload: Workload) -> str:
    """The clip in words: "1280x720, 81 frames"."""
    said = f"{workload.width}x{workload.height}, {workload.frames} frames"
    return said if workload.batch == 1 else f"{said}, batch {workload.batch}"
