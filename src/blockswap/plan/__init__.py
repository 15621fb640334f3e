"""Planning: from byte counts to the immutable decision of what stays and what is streamed."""

from .facts import Facts, UnitFacts
from .planner import make_plan
from .values import PlannedUnit, SwapPlan, Tier

__all__ = ["Facts", "PlannedUnit", "SwapPlan", "Tier", "UnitFacts", "make_plan"]
