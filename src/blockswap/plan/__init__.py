"""Planning: from byte counts to the immutable decision of what stays and what is streamed."""

from .facts import Facts, UnitFacts
from .foresight import Foresight, Speeds
from .planner import make_plan
from .timeline import Timing
from .values import PlannedUnit, SwapPlan, Tier

__all__ = [
    "Facts",
    "Foresight",
    "PlannedUnit",
    "Speeds",
    "SwapPlan",
    "Tier",
    "Timing",
    "UnitFacts",
    "make_plan",
]
