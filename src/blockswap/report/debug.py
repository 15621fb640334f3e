"""The line that `block_swap_debug` prints each time a block has run."""

from ..events import Visit
from .spans import copy_span, has_unmeasured_transfer, is_late, read_span
from .words import say_bytes, say_rate, say_seconds


def debug_line(visit: Visit) -> str:
    """One visit with its true times, without a newline.

    `forward 3 · blocks.12 · ram · slot 1 · copy 12.1 ms (51.9 GB/s) · waited 0 s · computed 40 ms`
    """
    words = [f"forward {visit.forward}", visit.unit, visit.tier]
    if visit.slot is not None:
        words.append(f"slot {visit.slot}")
    read, copy = read_span(visit), copy_span(visit)
    if read is not None:
        words.append(f"read {say_seconds(read[1] - read[0])}")
    if copy is not None:
        seconds = copy[1] - copy[0]
        rate = visit.copied_bytes / seconds if seconds > 0.0 else None
        words.append(
            f"copy {say_bytes(visit.copied_bytes)} {say_seconds(seconds)} ({say_rate(rate)})"
        )
    if has_unmeasured_transfer(visit):
        words.append(f"copy {say_bytes(visit.copied_bytes)} not measured")
    late = " (fetched on demand)" if is_late(visit) else ""
    words.append(f"waited {say_seconds(visit.exposed_seconds)}{late}")
    words.append(f"computed {say_seconds(visit.compute_seconds)}")
    return " · ".join(words)
