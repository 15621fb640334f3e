"""What "transfer", "hidden", "exposed" and "late" mean for one run of a block.

read      |=======|                     transfer = time in which bytes of the block moved
copy            |=====|                            (the union of both spans, no gap counted)
compute                 ~~~|########|   exposed  = started - arrived, marked ~~~
                                        hidden   = what of the transfer was not waited for
"""

from collections.abc import Iterable, Sequence

from ..events import Visit

Span = tuple[float, float]


def read_span(visit: Visit) -> Span | None:
    """When the block was read from the file, in seconds; None where it was not, or not timed."""
    if visit.read_started is None or visit.read_ended is None:
        return None
    return visit.read_started, visit.read_ended


def copy_span(visit: Visit) -> Span | None:
    """When the block was copied into its slot, in seconds; None where it was not, or not timed."""
    if visit.copy_started is None or visit.copy_ended is None:
        return None
    return visit.copy_started, visit.copy_ended


def busy_seconds(spans: Iterable[Span]) -> float:
    """Seconds covered by at least one of the spans; overlaps count once, gaps not at all."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        begin = max(start, reached)
        if end > begin:
            total += end - begin
            reached = end
    return total


def transfer_spans(visit: Visit) -> tuple[Span, ...]:
    """The measured spans in which bytes of this visit moved: its read, its copy, both or none."""
    return tuple(span for span in (read_span(visit), copy_span(visit)) if span is not None)


def has_unmeasured_transfer(visit: Visit) -> bool:
    """True where bytes were copied for this visit but neither a read nor a copy was timed."""
    return visit.copied_bytes > 0 and not transfer_spans(visit)


def hidden_seconds(visit: Visit) -> float:
    """Transfer seconds of this visit that ran under compute.

    transfer = the seconds in which the block's bytes moved (read, copy; where the two overlap
    they count once, and a gap between them is not transfer); exposed = `started - arrived`, the
    seconds the compute stream waited; hidden = max(0, transfer - exposed). A wait can be longer
    than the block's own transfer (it queued behind another): then nothing of it was hidden.
    """
    return max(0.0, busy_seconds(transfer_spans(visit)) - visit.exposed_seconds)


def is_late(visit: Visit) -> bool:
    """True where the first byte of this visit moved only after the block had been entered."""
    starts = [start for start, _ in transfer_spans(visit)]
    return bool(starts) and min(starts) >= visit.arrived and visit.exposed_seconds > 0.0


def last_forwards(visits: Sequence[Visit], count: int) -> tuple[Visit, ...]:
    """The visits of the last `count` forwards on record, in order of arrival."""
    kept = sorted({visit.forward for visit in visits})[-count:]
    return tuple(sorted((v for v in visits if v.forward in kept), key=lambda v: v.arrived))
