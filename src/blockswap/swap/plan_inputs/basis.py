"""What a plan is made of: byte counts, the blocks offered, arguments, needs of a forward."""

from dataclasses import dataclass

from ...plan import Facts, Foresight, SwapPlan, make_plan
from ...selection import BlockSwapArgs, Selection


@dataclass(frozen=True, slots=True)
class Basis:
    """What a plan was made of."""

    facts: Facts
    selection: Selection
    args: BlockSwapArgs
    foresight: Foresight | None

    def plan(self) -> SwapPlan:
        """The plan that it makes. Raises PlanError."""
        return make_plan(self.facts, self.selection, self.args, self.foresight)
