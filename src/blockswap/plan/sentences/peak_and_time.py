"""The prediction in sentences: what the peak is made of, what is binding, what a GiB would buy."""

from dataclasses import replace

from ...units import GIB, format_bytes, format_seconds
from ..choice.budgets import Question
from ..choice.decision import Choice, fit_in
from ..choice.plan_bytes import build_plan
from ..swap_plan import SwapPlan, Timing
from ..timing.forward_time import timing_of

_NOTICEABLE = 0.005  # a part of a step below which two times are called equal


def foretold_sentences(question: Question, choice: Choice, plan: SwapPlan) -> tuple[str, ...]:
    """Nothing where the workload is not known; bytes, and with speeds also seconds, where it is."""
    foresight = question.foresight
    if foresight is None or plan.peak_bytes is None:
        return ()
    bytes_said = (
        f"{foresight.workload}: {format_bytes(plan.peak_bytes)} at the peak on {plan.device}, "
        f"{format_bytes(plan.device_bytes)} of it weights and slots, "
        f"{format_bytes(foresight.activation_bytes)} activations; "
        f"{format_bytes(foresight.margin_bytes)} more is left as a margin"
    )
    if plan.timing is None:
        return (bytes_said,)
    return (bytes_said, _time(plan.timing), _binding(question, choice, plan.timing))


def _time(timing: Timing) -> str:
    step = f"a forward takes {format_seconds(timing.step_seconds)}: "
    step += f"{format_seconds(timing.compute_seconds)} of compute"
    if timing.decode_seconds:
        step += f" ({format_seconds(timing.decode_seconds)} of it decoding)"
    ways = [("copies", timing.copy_seconds), ("reads", timing.read_seconds)]
    moved = " and ".join(f"{format_seconds(s)} of {name}" for name, s in ways if s)
    if not moved:
        return f"{step}, nothing moves"
    waits = timing.exposed_seconds
    if waits < _NOTICEABLE * timing.step_seconds:
        return f"{step}, with {moved} hidden under it"
    return f"{step} and {format_seconds(waits)} of waiting for {moved}"


def _binding(question: Question, choice: Choice, timing: Timing) -> str:
    """What would have to grow to make it faster, and by how much one GiB does."""
    if timing.step_seconds <= timing.compute_seconds * (1 + _NOTICEABLE):
        return "compute is binding: more memory would not make it faster"
    way = {"link": "the link to the device", "disk": "the disk"}.get(timing.binding, "memory")
    more = _with_one_more_gib(question, choice)
    if more is None:
        return f"{way} is binding"
    blocks, seconds = more
    saved = timing.step_seconds - seconds
    if saved < _NOTICEABLE * timing.step_seconds:
        return f"{way} is binding: 1 GiB more on the device would not make a forward faster"
    share = saved / timing.step_seconds
    return (
        f"{way} is binding: 1 GiB more on the device keeps {blocks} more there and saves "
        f"{format_seconds(saved)} of a forward ({share:.0%})"
    )


def _with_one_more_gib(question: Question, choice: Choice) -> tuple[int, float] | None:
    """Residents gained and seconds of a forward with 1 GiB more; None where that is no question."""
    speeds = question.speeds
    if speeds is None or question.exact:
        return None
    limit = choice.option.device_bytes(choice.slots) + GIB
    fit = fit_in(question, limit)
    assert fit is not None, "what fits fits with more memory"
    plan = build_plan(question, fit.option, fit.slots)
    plan = replace(plan, timing=timing_of(plan, speeds, on_host=question.facts.on_host))
    assert plan.timing is not None
    return fit.option.residents - choice.option.residents, plan.timing.step_seconds
