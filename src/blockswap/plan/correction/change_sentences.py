"""Sentences on a plan changed by a measured forward or an out-of-memory; the last six are kept."""

from collections.abc import Sequence

from ...units import format_bytes
from ..swap_plan import SwapPlan
from .promotion import Correction

# The report tells the last few changes and counts the others.
KEPT_SENTENCES = 6


def correction_sentence(forward: int, correction: Correction, plan: SwapPlan) -> str:
    """What was measured and what followed; `plan` is the one after it."""
    when = "the first forward" if forward == 1 else f"forward {forward}"
    room = format_bytes(abs(correction.room_bytes))
    stay = f"({len(plan.residents)} of {len(plan.units)})"
    if correction.promote:
        count = len(correction.promote)
        more = f"{count} more block{'s stay' if count > 1 else ' stays'}"
        return f"after {when} {room} were still free: {more} {stay}"
    gone = _leave(len(correction.demote))
    if correction.room_bytes < 0:
        return f"{when} used {room} more than is meant to be used: {gone} {stay}"
    return f"{when} left only {room} free: {gone} {stay}"


def retry_sentence(
    forward: int, missing_bytes: int | None, released: Sequence[str], plan: SwapPlan
) -> str:
    """How an out-of-memory was survived; `plan` is the one after it."""
    asked = "" if missing_bytes is None else f" (it asked for {format_bytes(missing_bytes)} more)"
    ran = f"forward {forward} ran out of memory{asked}"
    if not released:
        return f"{ran}: what it held was dropped and it was run again"
    stay = f"({len(plan.residents)} of {len(plan.units)})"
    return f"{ran}: {_leave(len(released))} {stay}, and it was run again"


def smaller_sentence(forward: int, missing_bytes: int | None, chunk_tokens: int) -> str:
    """How an out-of-memory was survived where no weight had to move."""
    asked = "" if missing_bytes is None else f" (it asked for {format_bytes(missing_bytes)} more)"
    return (
        f"forward {forward} ran out of memory{asked}: blocks run in pieces of at most "
        f"{chunk_tokens:,} tokens from now on, and it was run again"
    )


def recent(sentences: Sequence[str]) -> tuple[str, ...]:
    """The last few sentences, with a count of those left out."""
    left_out = len(sentences) - KEPT_SENTENCES
    if left_out <= 0:
        return tuple(sentences)
    return (f"{left_out} earlier changes of the plan", *sentences[left_out:])


def _leave(count: int) -> str:
    return f"{count} block{'s no longer stay' if count > 1 else ' no longer stays'}"
