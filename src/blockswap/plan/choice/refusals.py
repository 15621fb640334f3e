"""When a plan is refused: a budget below the least, or a CPU plan beyond all host memory."""

from collections.abc import Sequence

from ...errors import PlanError
from ...units import format_bytes, format_bytes_at_least
from ..inputs.foresight import Foresight
from ..inputs.unit_sizes import EXCHANGED_SLABS, Facts
from ..swap_plan import SwapPlan
from .options import Option, floor_of


def refusal(
    facts: Facts, offered: Sequence[Option], foresight: Foresight | None, asked: str
) -> PlanError:
    """The error that says what was asked, the least that would do, and how to get there."""
    floor = floor_of(offered)
    least = floor.device_bytes(1)
    count = len(floor.streamed)
    how = f"with {count} of {len(facts.units)} units streamed through 1 slot"
    how = how if count else "with nothing streamed"
    # Where all that may move is streamed already, more of it is no way out.
    helps = "give it that much"
    if max(len(option.streamed) for option in offered) < len(facts.units):
        helps += ", or let more units be streamed"
    if foresight is not None:
        helps += ", or ask for a smaller clip"
        how += (
            f" ({format_bytes(least)}) and {format_bytes(foresight.reserve_bytes)} for "
            f"{foresight.workload}"
        )
        least += foresight.reserve_bytes
    return PlanError(
        f"{asked}, {facts.label} needs at least {format_bytes_at_least(least)} on {facts.device} "
        f"{how}: {helps}",
        least_bytes=least,
    )


def refuse_beyond_memory(facts: Facts, plan: SwapPlan, most_bytes: int | None) -> None:
    """Raises PlanError where a plan for the CPU takes more than `most_bytes`, all that there is.

    The system promises more than it has and ends the process later, and only what is asked for in
    one piece is refused at once.
    """
    if not facts.on_host or not facts.from_checkpoint or most_bytes is None:
        return
    ranks, slots = facts.ranks_in_memory, plan.slots
    needed = plan.device_bytes
    if ranks > 1 and slots:
        each = slots * plan.slot_bytes + plan.decode_bytes
        needed += (ranks - 1) * each + EXCHANGED_SLABS * plan.slot_bytes
    if needed > most_bytes:
        size = format_bytes(plan.slot_bytes)
        size += "" if ranks == 1 else f" in each of {ranks} ranks"
        raise PlanError(
            f"{facts.label} needs {format_bytes(needed)} of "
            f"host memory for weights and {slots} slots of {size}, "
            f"{format_bytes(most_bytes)} are free: stream more blocks with fewer "
            "prefetch_blocks, free memory, or use a machine with more"
        )
