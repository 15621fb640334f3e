"""How a clip's tokens are cut into pieces: balanced, contiguous, and never fewer than 64.

Attention on the CPU takes its queries in stretches (of 32, 64 or 256, by their number), and a rest
of one to three goes through another kernel, which adds in another order. So pieces end where a
stretch ends, and the last one has a rest as the whole does: then each result is that of the whole.
"""

import itertools

from ..plan.inputs.pieces import LEAST_TOKENS

_ODD_RESTS = (1, 2, 3)
_SHIFT = 8  # moves a rest out of the odd ones, and makes none of its own


def cut(tokens: int, most: int) -> tuple[tuple[int, int], ...]:
    """(start, stop) of each piece, balanced in whole stretches.

    None is above `most`, but that each has at least 64 tokens, also where `most` does not divide
    so. A single piece is the whole.
    """
    stretch = _stretch(most)
    stretches = -(-tokens // stretch)
    least = -(-LEAST_TOKENS // stretch)
    count = max(1, min(-(-stretches // (most // stretch)), stretches // least))
    ends = [stretches * number // count * stretch for number in range(count)]
    if len(ends) > 1 and tokens - ends[-1] < LEAST_TOKENS:
        ends.pop()
    while len(ends) > 1 and _has_new_rest(tokens, tokens - ends[-1]):
        if ends[-1] - _SHIFT - ends[-2] >= LEAST_TOKENS:
            ends[-1] -= _SHIFT
        elif tokens - ends[-1] - _SHIFT >= LEAST_TOKENS:
            ends[-1] += _SHIFT
        else:
            ends.pop()
    return tuple(zip(ends, [*ends[1:], tokens], strict=True))


def _stretch(queries: int) -> int:
    """Queries that the CPU's attention takes together, of so many."""
    return 256 if queries >= 768 else 64 if queries >= 192 else 32


def _has_new_rest(tokens: int, last: int) -> bool:
    """Whether the last piece leaves an odd rest where the whole leaves none."""
    return last % _stretch(last) in _ODD_RESTS and tokens % _stretch(tokens) not in _ODD_RESTS


def cut_alike(tokens: int, most: int) -> tuple[tuple[int, int], ...]:
    """Pieces of one size and a last one of another, for who compiles a graph for each size.

    As large as the largest of `cut`, but that the last one has at least 64 tokens, too.
    """
    size = max(stop - start for start, stop in cut(tokens, most))
    count = -(-tokens // size)
    if count > 1 and tokens - (count - 1) * size < LEAST_TOKENS:
        size = (tokens - LEAST_TOKENS) // (count - 1)
    ends = [*range(0, size * (count - 1) + 1, size), tokens] if count > 1 else [0, tokens]
    return tuple(itertools.pairwise(ends))


def two_of_each_size(pieces: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Enough pieces to see what all of them need: the second finds what the first has left."""
    seen: dict[int, list[tuple[int, int]]] = {}
    for start, stop in pieces:
        seen.setdefault(stop - start, []).append((start, stop))
    return tuple(piece for alike in seen.values() for piece in alike[:2])
