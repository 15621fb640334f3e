"""Planning: from byte counts to the immutable decision of what stays and what is streamed."""

from blockswap.plan.facts import Facts, UnitFacts
from blockswap.plan.planner import make_plan
from blockswap.plan.values import PlannedUnit, SwapPlan, Tier

__all__ = ["Facts", "PlannedUnit", "SwapPlan", "Tier", "UnitFacts", "make_plan"]
