"""Groups of torch.distributed that are ours: made once for some ranks, kept, met under fresh names.

torch names a group by its ranks and by how many groups a process has, and its members find each
other's addresses in a store under that name. A caller may have given one rank a group more, and
the store may outlive processes (torchrun starts a rank's next life on it): so ranks first meet
under names that no other life has, and even their counts out.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from .waiting import wait_until

# (ranks, backend, seconds of its timeout, number) -> what torch.distributed was then, the group.
_Key = tuple[tuple[int, ...], str, float, int]
_groups: dict[_Key, tuple[Any, Any]] = {}


def group_of(ranks: tuple[int, ...], backend: str, seconds: float, number: int = 0) -> Any:
    """A group of our own over `ranks`, the same one each time. Every rank of it must call this.

    `number`: which one of several for the same ranks. One that is destroyed gives its name to the
    next, so they are kept, and forgotten when they have failed or torch.distributed was started
    anew. Raises RuntimeError where a rank does not come within `seconds`.
    """
    if number in groups_of(ranks, backend, seconds):
        return _groups[ranks, backend, seconds, number][1]
    with _met(ranks, seconds):
        group = dist.new_group(
            list(ranks),
            backend=backend,
            timeout=timedelta(seconds=_seconds_to_connect(backend, seconds)),
            use_local_synchronization=True,
        )
    if backend == "gloo":
        c10d._set_pg_timeout(timedelta(seconds=seconds), group)
    _groups[ranks, backend, seconds, number] = dist.group.WORLD, group
    return group


def _seconds_to_connect(backend: str, seconds: float) -> float:
    """gloo misses a rank that ends while it connects after five times as long (measured)."""
    return max(seconds / 5, 10.0) if backend == "gloo" else seconds


def groups_of(ranks: tuple[int, ...], backend: str, seconds: float) -> frozenset[int]:
    """The numbers of those that `group_of` would not have to start."""
    asked, world = (ranks, backend, seconds), dist.group.WORLD
    return frozenset(
        key[3] for key, kept in _groups.items() if key[:3] == asked and kept[0] is world
    )


def forget_group(group: Any) -> None:
    """A group on which a rank was missing is of no more use."""
    for key in [key for key, kept in _groups.items() if kept[1] is group]:
        del _groups[key]


@contextlib.contextmanager
def _met(ranks: tuple[int, ...], seconds: float) -> Iterator[None]:
    """All ranks have as many groups, and a part of the store that nobody else has used."""
    here, default = dist.get_rank(), _default()
    backend, store = c10d._world.pg_map[default]
    told = _meet(store, ranks, here, f"{uuid.uuid4().hex} {len(c10d._world.pg_names)}", seconds)
    counts = {rank: int(word.split()[1]) for rank, word in told.items()}
    for _ in range(max(counts.values()) - counts[here]):
        dist.new_group([here], backend="gloo", use_local_synchronization=True)
    name = told[ranks[0]].split()[0]
    fresh = dist.PrefixStore(f"blockswap/{name}", store)  # type: ignore[attr-defined]
    c10d._world.pg_map[default] = backend, fresh
    try:
        yield
    finally:
        c10d._world.pg_map[default] = backend, store


def _meet(
    store: Any, ranks: tuple[int, ...], here: int, word: str, seconds: float
) -> Mapping[int, str]:
    """What each of `ranks` says by a `word` of its own, once all have seen the same.

    Words of an earlier life are in the store, too: who has seen this rank's own is alive. Before
    the same ranks meet again all have met here: what follows is a step that they make together.
    """
    end = time.monotonic() + seconds
    key = f"blockswap/{ranks}/{{}}".format
    seen: dict[int, str] = {}

    def all_have_seen() -> bool:
        nonlocal seen
        if time.monotonic() > end:
            raise RuntimeError(f"a rank did not come within {seconds:g} s")
        found = seen | {here: word}
        for rank in ranks:
            if rank != here and store.check([key(rank)]):
                found[rank] = json.loads(store.get(key(rank)))[str(rank)]
        if found != seen:
            seen = found
            store.set(key(here), json.dumps(seen))
        if len(seen) < len(ranks):
            return False
        return all(json.loads(store.get(key(rank))) == _by_name(seen) for rank in ranks)

    wait_until(all_have_seen, most=0.01)
    return dict(sorted(seen.items()))


def _default() -> dist.ProcessGroup:
    default = dist.group.WORLD
    assert default is not None, "a mesh is made of ranks that torch.distributed has started"
    return default


def _by_name(seen: Mapping[int, str]) -> dict[str, str]:
    return {str(rank): word for rank, word in seen.items()}
