"""The most frames that fit where the clip asked for does not, found by bisection."""

from dataclasses import replace

from ..plan.inputs.workload import Workload
from .forecast import Order, foresee, has_plan


def largest_clip(order: Order) -> Workload | None:
    """The same clip with as many frames as fit; None where not even one frame does.

    What a forward needs grows with its frames, so the number is found by halving.
    """
    grid = order.workload.grid
    low, high = 0, grid.clips(order.workload.frames)
    while low < high:
        middle = (low + high + 1) // 2
        shorter = replace(order, workload=_with(order.workload, middle))
        if has_plan(shorter, foresee(shorter)):
            low = middle
        else:
            high = middle - 1
    return _with(order.workload, low) if low else None


def _with(workload: Workload, number: int) -> Workload:
    """The clip with the `number`th count of frames that there is, from 1."""
    grid = workload.grid
    return replace(workload, frames=grid.step * (number - 1) + grid.first)
