"""`make_plan`: its steps; the file instead of RAM if as fast; a loaded model on the CPU stays."""

from dataclasses import replace
from functools import partial

from ..errors import PlanError
from ..selection import BlockSwapArgs, Selection
from ..units import format_bytes, format_bytes_at_least
from .choice.budgets import Question, question_of, without_ram
from .choice.cut_forward import Attempt, asked_in_pieces, best_in_pieces, lacks_room
from .choice.decision import Choice, choose
from .choice.plan_bytes import build_plan, planned_units, staging_of, whole_bytes
from .inputs.foresight import Foresight
from .inputs.known import Known
from .inputs.unit_sizes import Facts
from .sentences.memory import memory_warning, ram_sentences, slot_sentences, table_sentences
from .sentences.peak_and_time import foretold_sentences
from .sentences.placement import summary
from .swap_plan import SwapPlan, Timing
from .timing.forward_time import timing_of


def make_plan(
    facts: Facts,
    selection: Selection,
    args: BlockSwapArgs,
    foresight: Foresight | None = None,
    known: Known | None = None,
) -> SwapPlan:
    """Decides what stays, what is streamed, from where and through how many slots.

    The decision depends on its arguments alone. It is within the budgets given; more budget never
    means fewer residents or, where `foresight` has speeds, a slower forward; streamed units lie as
    evenly between residents as the candidates and their sizes allow. Without a budget and with
    exact candidates, precisely those are streamed. (Asking for slots is an exception: of unequal
    blocks, a budget that just holds so many slots may give a slower forward than a smaller one,
    where as few are taken as is fastest.)
    `staging_bytes` of the plan is the size of one staging buffer, as `slot_bytes` is of one slot;
    `pinned_bytes` is what the arena may pin, staging not counted.
    `known` is handed from one budget to the next. Raises PlanError, with the least budget that
    would do, if nothing fits.
    """
    asked, cut_said = asked_in_pieces(args, foresight)
    plan, said = _decided(question_of(facts, selection, args, asked, known))
    told = (*facts.notes, *selection.sentences, *table_sentences(facts))
    sentences = (summary(facts, plan), *told, *said(), *cut_said)
    return replace(plan, sentences=sentences)


def plan_in_numbers(
    facts: Facts,
    selection: Selection,
    args: BlockSwapArgs,
    foresight: Foresight | None = None,
    known: Known | None = None,
) -> SwapPlan:
    """The same plan without its sentences: one of many, of which the numbers count."""
    asked, _ = asked_in_pieces(args, foresight)
    plan, _ = _decided(question_of(facts, selection, args, asked, known))
    return plan


def _decided(question: Question) -> Attempt:
    facts, asked = question.facts, question.args.chunk_tokens
    in_place = facts.on_host and not facts.from_checkpoint
    plan, said = _plan_in_place(question) if in_place else _plan_whole_or_in_pieces(question)
    return (replace(plan, chunk_tokens=asked) if plan.chunk_tokens is None else plan), said


def _plan_whole_or_in_pieces(question: Question) -> Attempt:
    """Whole where that fits; else the fastest of the pieces that do, the larger of equals."""
    foresight, args = question.foresight, question.args
    if foresight is None or foresight.in_pieces is None or args.chunk_tokens is not None:
        return _plan_streaming(question)
    try:
        whole = _plan_streaming(question)
    except PlanError:
        whole = None
    if whole is not None and not lacks_room(question, whole[0]):
        return whole
    found = best_in_pieces(question, foresight, _plan_streaming)
    return found or whole or _plan_streaming(_in_smallest_pieces(question, foresight))


def _in_smallest_pieces(question: Question, foresight: Foresight) -> Question:
    """What is refused where nothing fits: the least that any plan needs."""
    sizes = () if foresight.in_pieces is None else foresight.in_pieces.sizes
    return replace(question, foresight=foresight.cut(sizes[-1])) if sizes else question


def _plan_streaming(question: Question) -> Attempt:
    """The plan for a model that is copied or read into slots, and what it means."""
    choice = choose(question)
    plan = _foreseen(question, build_plan(question, choice.option, choice.slots))
    if question.ram_is_automatic and plan.timing is not None:
        frugal = without_ram(question)
        other = choose(frugal)
        from_disk = _foreseen(frugal, build_plan(frugal, other.option, other.slots))
        if from_disk.timing is not None and _as_fast(from_disk.timing, plan.timing):
            question, choice, plan = frugal, other, from_disk
    plan = replace(plan, reserve_bytes=choice.reserve_bytes)
    return plan, partial(_said, question, choice, plan)


def _said(question: Question, choice: Choice, plan: SwapPlan) -> tuple[str, ...]:
    return (
        *choice.sentences,
        *slot_sentences(question, choice),
        *ram_sentences(question, plan, staging_of(question, choice.option.streamed)),
        *memory_warning(question, choice),
        *foretold_sentences(question, choice, plan),
    )


def _foreseen(question: Question, plan: SwapPlan) -> SwapPlan:
    """The plan with what is predicted for it."""
    foresight = question.foresight
    if foresight is None:
        return plan
    timing = None
    if foresight.speeds is not None:
        timing = timing_of(plan, foresight.speeds, on_host=question.facts.on_host)
    return replace(
        plan,
        activation_bytes=foresight.activation_bytes,
        timing=timing,
        chunk_tokens=foresight.chunk_tokens or None,
    )


def _as_fast(one: Timing, other: Timing) -> bool:
    return one.step_seconds <= other.step_seconds * (1 + 1e-9)


def _plan_in_place(question: Question) -> Attempt:
    """A loaded model on the CPU: its blocks lie where they are used, so nothing moves."""
    facts, limit = question.facts, question.args.vram_budget_bytes
    whole = whole_bytes(facts)
    if limit is not None and whole > limit:
        raise PlanError(
            f"vram_budget={format_bytes(limit)} was asked, {facts.label} is loaded and takes at "
            f"least {format_bytes_at_least(whole)} on {facts.device}: open it from its checkpoint "
            "to stream it in less, or give it that much",
            least_bytes=whole,
        )
    streamed = question.candidates if question.exact else ()
    plan = SwapPlan(
        device=facts.device,
        units=planned_units(facts, dict.fromkeys((unit.name for unit in streamed), "ram")),
        slots=0,
        slot_bytes=0,
        prefetch=0,
        rest_bytes=facts.rest_bytes,
        decode_bytes=0,
        device_bytes=whole,
        reserve_bytes=0,
        pinned_bytes=0,
        staging_buffers=0,
        staging_bytes=0,
        copied_bytes_per_forward=0,
        read_bytes_per_forward=0,
        sentences=(),
    )
    return _foreseen(question, plan), partial(_in_place_sentences, question, whole)


def _in_place_sentences(question: Question, whole: int) -> tuple[str, ...]:
    said = ["on the CPU blocks are used where they lie: nothing is copied or pinned"]
    budget = question.args.ram_budget_bytes
    if budget is not None and whole > budget:
        said.append(
            f"ram_budget={format_bytes(budget)} cannot be kept, the loaded model takes "
            f"{format_bytes(whole)}: open it from its checkpoint to stream it in less"
        )
    return tuple(said)
