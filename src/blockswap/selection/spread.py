"""Even spreading: which blocks of a cycle are chosen, so that gaps differ by at most one.

    spread(10, 4) -> 1, 4, 6, 9      . x . . x . x . . x | . x . .   gaps 3 2 3 2

The ring matters: prefetch wraps around from the last block of a forward to the first of the next,
so the gap across the end counts like any other. The chosen come as late as they may, which gives
the very first forward the longest lead.
"""

from ..errors import ArgsError


def spread(total: int, chosen: int) -> tuple[int, ...]:
    """`chosen` ascending positions out of `range(total)`; gaps on the ring differ by at most one.

    This is Bresenham's line: after k of the chosen, k * total / chosen positions have passed.
    Raises ArgsError unless 0 <= chosen <= total.
    """
    if not 0 <= chosen <= total:
        raise ArgsError(f"{chosen} positions were asked out of {total}: ask for 0 to {total}")
    return tuple((step + 1) * total // chosen - 1 for step in range(chosen))
