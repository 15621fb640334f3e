"""Whether blocks run whole or in pieces of tokens, and in pieces of which size.

asked              runs
nothing            whole where that fits; else in the pieces that give the fastest forward (where no
                   speeds are known: the largest that leave room for the usual slots), if any fit
chunk_tokens=0     whole
chunk_tokens=N     in pieces of at most N tokens
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ...errors import PlanError
from ...selection import BlockSwapArgs
from ...units import format_bytes
from ..inputs.foresight import Foresight
from ..swap_plan import SwapPlan
from .budgets import Question

# A plan, and what is to be said of it if it is taken: that takes as long as the plan did.
Attempt = tuple[SwapPlan, Callable[[], tuple[str, ...]]]


def asked_in_pieces(
    args: BlockSwapArgs, foresight: Foresight | None
) -> tuple[Foresight | None, tuple[str, ...]]:
    """What is foreseen of a forward as it was asked for, and what is to be said of it."""
    tokens = args.chunk_tokens
    if not tokens:
        return foresight, ()
    asked = f"blocks run in pieces of at most {tokens:,} tokens, as asked"
    if foresight is None:
        return None, (asked,)
    if foresight.in_pieces is None:
        return foresight, (f"{asked}: what that needs is not known here, the whole is planned",)
    cut = foresight.cut(tokens)
    return cut, (
        f"{asked}: {format_bytes(cut.activation_bytes)} of activations, "
        f"{format_bytes(foresight.activation_bytes)} whole",
    )


def lacks_room(question: Question, plan: SwapPlan) -> bool:
    """Whether a plan that nothing limits (exact blocks) is beyond what is free on the device."""
    free = question.facts.device_free_bytes
    limited = question.device_budget is not None
    if limited or free is None or question.facts.on_host:
        return False
    return plan.device_bytes + question.reserve_bytes > free


def best_in_pieces(
    question: Question, whole: Foresight, plan_for: Callable[[Question], Attempt]
) -> Attempt | None:
    """The best plan in pieces, and why it is one; None where none fits."""
    best: Attempt | None = None
    assert whole.in_pieces is not None, "asked only where pieces are known"
    for tokens in whole.in_pieces.sizes:
        cut = whole.cut(tokens)
        asked = replace(question, foresight=cut)
        try:
            plan, said = plan_for(asked)
        except PlanError:
            continue
        if not lacks_room(asked, plan) and (best is None or _is_better(plan, best[0], question)):
            best = plan, partial(_with_why, said, whole, cut)
    return best


def _with_why(
    said: Callable[[], tuple[str, ...]], whole: Foresight, cut: Foresight
) -> tuple[str, ...]:
    return (*said(), _why(whole, cut))


def _is_better(plan: SwapPlan, other: SwapPlan, question: Question) -> bool:
    """Whether smaller pieces are worth it: a faster forward, or slots that were lacking."""
    if plan.timing is None or other.timing is None:
        return other.slots < plan.slots <= question.slots
    return plan.timing.step_seconds < other.timing.step_seconds * (1 - 1e-9)


def _why(whole: Foresight, cut: Foresight) -> str:
    return (
        f"the whole forward needs {format_bytes(whole.activation_bytes)} of activations, which "
        f"does not fit: blocks run in pieces of at most {cut.chunk_tokens:,} tokens, which needs "
        f"{format_bytes(cut.activation_bytes)} at the same FLOPs"
    )
