"""Planning: from byte counts to the immutable decision of what stays and what is streamed."""

from .inputs.foresight import Foresight, Speeds
from .inputs.known import Known
from .inputs.unit_sizes import Facts, UnitFacts
from .planner import make_plan, plan_in_numbers
from .swap_plan import PlannedUnit, SwapPlan, Tier, Timing

__all__ = [
    "Facts",
    "Foresight",
    "Known",
    "PlannedUnit",
    "Speeds",
    "SwapPlan",
    "Tier",
    "Timing",
    "UnitFacts",
    "make_plan",
    "plan_in_numbers",
]
