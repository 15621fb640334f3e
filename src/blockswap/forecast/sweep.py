"""Step time by memory: plans under 65 budgets, from the least that works to all resident."""

from dataclasses import dataclass, replace

from ..plan import Foresight, Known, SwapPlan
from .forecast import Order, foresee, has_plan, numbers_of

STEPS = 64


@dataclass(frozen=True, slots=True)
class Point:
    """One budget, and what its plan promises. `step_seconds` is None without a known machine."""

    budget_bytes: int
    peak_bytes: int
    residents: int
    streamed: int
    step_seconds: float | None


def sweep(order: Order, known: Known | None = None, *, steps: int = STEPS) -> tuple[Point, ...]:
    """Plans under `steps` + 1 budgets from the least that works to the one that keeps it all.

    Raises what `forecast` raises but PlanError.
    """
    foresight, known = foresee(order), known or Known()
    least, most = limits(order, foresight, known)
    budgets = [least + (most - least) * step // steps for step in range(steps + 1)]
    return tuple(_point(numbers_of(_under(order, b), foresight, known), b) for b in budgets)


def limits(order: Order, foresight: Foresight, known: Known | None = None) -> tuple[int, int]:
    """The least budget in bytes that has a plan, and the one that keeps the whole model."""
    known = known or Known()
    whole = numbers_of(_under(order, 1 << 60), replace(foresight, speeds=None), known)
    most = whole.device_bytes + foresight.reserve_bytes
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if has_plan(_under(order, middle), foresight, known):
            high = middle
        else:
            low = middle + 1
    return low, most


def _under(order: Order, budget_bytes: int) -> Order:
    return replace(order, args=replace(order.args, vram_budget=budget_bytes))


def _point(plan: SwapPlan, budget_bytes: int) -> Point:
    assert plan.peak_bytes is not None, "a forecast knows its workload"
    return Point(
        budget_bytes=budget_bytes,
        peak_bytes=plan.peak_bytes,
        residents=len(plan.residents),
        streamed=len(plan.streamed),
        step_seconds=None if plan.timing is None else plan.timing.step_seconds,
    )
