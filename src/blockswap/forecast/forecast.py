"""One forecast: a model's figures, a clip, a machine and a wish become a plan with its reasons."""

from dataclasses import dataclass, field, replace

from ..errors import PlanError
from ..events import Counters, Measured
from ..plan import Facts, Foresight, Speeds, SwapPlan, make_plan
from ..plan.foresight import pipeline_of
from ..plan.machine import Machine
from ..plan.workload import ForwardCost, Workload
from ..predict import predict_forward
from ..selection import BlockSwapArgs, select
from ..units import MIB
from .figures import ModelFigures

GRANULARITY_BYTES = 512  # CUDA's caching allocator
# What no model of the device sees. A context and the libraries' workspaces take 200-400 MiB that
# "free memory" of an idle card still counts as free; a caching allocator leaves holes between
# tensors of changing sizes. Not measured on a card: `make test-gpu` prints what yours takes.
FIXED_MARGIN_BYTES = 256 * MIB
MARGIN_SHARE = 0.05


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
    device_free_bytes: int | None = None
    host_free_bytes: int | None = None

    @property
    def on_host(self) -> bool:
        return self.machine is not None and self.machine.on_host


@dataclass(frozen=True, slots=True)
class Forecast:
    """The plan, and what it was made from. `speeds` are None where the machine is not known."""

    order: Order
    plan: SwapPlan
    cost: ForwardCost
    margin_bytes: int
    speeds: Speeds | None

    @property
    def blocks_to_swap(self) -> int:
        """The count that other packs take for the same number of streamed blocks."""
        kinds = {unit.name: unit.kind for unit in self.order.model.units}
        return sum(kinds[name] == "block" for name in self.plan.streamed)

    def foreseen(self) -> Measured | None:
        """Two forwards in the steady state as a report or a picture takes them."""
        if self.speeds is None:
            return None
        line = pipeline_of(self.plan, self.speeds, on_host=self.order.on_host)
        return Measured(visits=line.visits(), counters=Counters(forwards=2))


def forecast(order: Order) -> Forecast:
    """Plans without weights and without the machine. Raises PlanError, ArgsError, GeometryError."""
    cost = predict_forward(order.model.geometry, order.workload)
    return planned(order, cost, speeds_of(order, cost))


def planned(order: Order, cost: ForwardCost, speeds: Speeds | None) -> Forecast:
    """The forecast, where what a forward costs is known already."""
    margin = 0 if order.on_host else margin_bytes(cost)
    foresight = Foresight(say_workload(order.workload), cost.activation_bytes, margin, speeds)
    selection = select(order.args, order.model.layout)
    plan = make_plan(facts_of(order), selection, order.args, foresight)
    return Forecast(order, plan, cost, margin, speeds)


def has_plan(order: Order) -> bool:
    """Whether anything fits; how fast it is does not matter for that."""
    cost = predict_forward(order.model.geometry, order.workload)
    try:
        planned(order, cost, None)
    except PlanError:
        return False
    return True


def margin_bytes(cost: ForwardCost) -> int:
    """What is left free beside the prediction on a real accelerator."""
    return FIXED_MARGIN_BYTES + int(cost.activation_bytes * MARGIN_SHARE)


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
