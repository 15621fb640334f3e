"""Step time against memory: the same order under budgets from the least to all resident."""

from dataclasses import dataclass, replace

from .forecast import Forecast, Order, generation_of, has_plan, planned, speeds_of

STEPS = 64


@dataclass(frozen=True, slots=True)
class Point:
    """One budget, and what its plan promises. `step_seconds` is None without a known machine."""

    budget_bytes: int
    peak_bytes: int
    residents: int
    streamed: int
    step_seconds: float | None


def sweep(order: Order, *, steps: int = STEPS) -> tuple[Point, ...]:
    """Plans under `steps` + 1 budgets from the least that works to the one that keeps it all.

    Raises what `forecast` raises but PlanError.
    """
    generation = generation_of(order)
    speeds = speeds_of(order, generation.denoising)
    least, most = limits(order)
    budgets = [least + (most - least) * step // steps for step in range(steps + 1)]
    return tuple(_point(planned(_under(order, b), generation, speeds), b) for b in budgets)


def limits(order: Order) -> tuple[int, int]:
    """The least budget in bytes that has a plan, and the one that keeps the whole model."""
    whole = planned(_under(order, 1 << 60), generation_of(order), None)
    most = (whole.plan.peak_bytes or 0) + whole.margin_bytes
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if has_plan(_under(order, middle)):
            high = middle
        else:
            low = middle + 1
    return low, most


def _under(order: Order, budget_bytes: int) -> Order:
    return replace(order, args=replace(order.args, vram_budget=budget_bytes))


def _point(told: Forecast, budget_bytes: int) -> Point:
    plan = told.plan
    assert plan.peak_bytes is not None, "a forecast knows its workload"
    return Point(
        budget_bytes=budget_bytes,
        peak_bytes=plan.peak_bytes,
        residents=len(plan.residents),
        streamed=len(plan.streamed),
        step_seconds=None if plan.timing is None else plan.timing.step_seconds,
    )
