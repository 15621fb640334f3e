"""Which group of torch.distributed a swap's gathers go over: one that no other open swap has.

The gathers of one swap have an order that all ranks agree on (`ledger`); those of two swaps have
none, and in one group a rank's gather of one would be paired with another rank's of the other.
Groups are kept and used again: a communicator takes long to make and holds device memory.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import StateError
from .group import Ranks
from .torch_groups import forget_group, group_of, groups_of

# (ranks, backend, number) of the groups that open swaps of this process have.
_in_use: set[tuple[tuple[int, ...], str, int]] = set()


@dataclass(frozen=True, slots=True)
class Groups:
    """What one rank has of the groups for some ranks: numbers of those kept, and those in use."""

    kept: frozenset[int]
    in_use: frozenset[int]


class GatherGroup:
    """A group of torch.distributed (`torchs`) that one swap has until it is closed."""

    def __init__(self, torchs: Any, key: tuple[tuple[int, ...], str, int]) -> None:
        self.torchs = torchs
        self._key = key
        _in_use.add(key)

    def forget(self) -> None:
        """A gather has failed in it: nobody uses it again."""
        forget_group(self.torchs)

    def close(self) -> None:
        """The next swap may have it."""
        _in_use.discard(self._key)


def groups_here(ranks: Ranks, backend: str, seconds: float) -> Groups:
    """What this rank has, to be told to the others."""
    in_use = (number for *key, number in _in_use if key == [ranks.ranks, backend])
    return Groups(groups_of(ranks.ranks, backend, seconds), frozenset(in_use))


def free_group(
    ranks: Ranks, backend: str, seconds: float, told: Mapping[int, Groups]
) -> GatherGroup:
    """The first group that is free on every rank, by what they `told`. All of them must call it.

    Raises StateError, on all ranks, where it cannot be started.
    """
    in_use = frozenset[int]().union(*(groups.in_use for groups in told.values()))
    number = next(n for n in itertools.count() if n not in in_use)
    # One whose gathers have failed may be the only one that has given its group up.
    kept = number in told[ranks.rank].kept
    if kept and not all(number in groups.kept for groups in told.values()):
        forget_group(group_of(ranks.ranks, backend, seconds, number))
    with ranks.together("start a group for gathers"):
        torchs = _started(ranks.ranks, backend, seconds, number)
    return GatherGroup(torchs, (ranks.ranks, backend, number))


def _started(ranks: tuple[int, ...], backend: str, seconds: float, number: int) -> Any:
    try:
        return group_of(ranks, backend, seconds, number)
    except RuntimeError as error:
        raise StateError(
            f"a group of ranks {', '.join(map(str, ranks))} for gathers could not be started "
            f"({str(error).partition(chr(10))[0]}): see what the other ranks say, then start all "
            "of them again"
        ) from error
