"""Who the ranks are, which share a host, and how they agree: all of them go on, or none does.

Everything that one rank tells the others goes through `Ranks.agree`, so that a failure of one is a
sentence on all of them and nobody waits for ever. Each names the step that it is at: ranks that do
not make the same calls find that out at the first step that differs. The group is one of our own
(gloo, on the host): what a forward's own collectives do is not disturbed, and no forward asks it.
"""

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from ..errors import ArgsError, BlockSwapError, StateError

# A rank may still be loading a large model from a slow disk when the others are ready.
WAIT_SECONDS = 600.0

_TOLD = "blockswap_told"  # an attribute of errors: the other ranks know
_Error = TypeVar("_Error", bound=Exception)

# (ranks, backend, seconds of its timeout) -> what torch.distributed was then, and the group.
_groups: dict[tuple[tuple[int, ...], str, float], tuple[Any, Any]] = {}
_turns: Counter[tuple[int, ...]] = Counter()  # how often such a group was made


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of a mesh as one of them sees it; `ranks` are global numbers, in mesh order.

    `hosts[i]` says where rank i runs: ranks with the same value can map each other's memory.
    """

    group: Any
    ranks: tuple[int, ...]
    rank: int
    hosts: tuple[str, ...]
    wait_seconds: float

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The ranks of this host, in mesh order."""
        here = self.hosts[self.ranks.index(self.rank)]
        return tuple(r for r, host in zip(self.ranks, self.hosts, strict=True) if host == here)

    def of_this_host(self) -> "Ranks":
        """The same without those of other hosts. Every rank of this host must call it."""
        here = self.neighbours
        if here == self.ranks:
            return self
        hosts = (self.hosts[self.ranks.index(self.rank)],) * len(here)
        return replace(self, group=_own_group(here, self.rank), ranks=here, hosts=hosts)

    def agree(self, what: str, said: object) -> dict[int, Any]:
        """What every rank said, by rank, once all have said it.

        Raises StateError within the stated wait where a rank did not come, ended or refused.
        """
        told = _exchange(self, what, (what, None, said))
        for rank, (_, refusal, _) in told.items():
            if refusal is not None:
                raise _told(StateError(f"rank {rank} refused, so that no rank goes on: {refusal}"))
        first = self.ranks[0]
        for rank, (step, _, _) in told.items():
            if step != told[first][0]:
                raise _told(
                    StateError(
                        f"rank {rank} was to {step} and rank {first} to {told[first][0]}: every "
                        "rank of the mesh makes the same calls, with the same args, in one order"
                    )
                )
        return {rank: value for rank, (_, _, value) in told.items()}

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """A step that may fail on one rank: then it has failed on all of them, in one sentence.

        It may have such steps in it: each failure is told once.
        """
        try:
            yield
        except Exception as error:
            if _TOLD not in vars(error):
                _exchange(self, what, (what, _sentence(_told(error)), None))
            raise
        self.agree(what, None)


def together_or_alone(ranks: Ranks | None, what: str) -> AbstractContextManager[None]:
    """`Ranks.together`, or nothing where there is one process."""
    return contextlib.nullcontext() if ranks is None else ranks.together(what)


def ranks_of(mesh: Any) -> Ranks:
    """The ranks of a `DeviceMesh`, all dimensions taken together. Every rank of it must call this.

    Raises ArgsError for what is no mesh with this process in it, StateError where one is missing.
    """
    from torch.distributed.device_mesh import DeviceMesh

    if not isinstance(mesh, DeviceMesh):
        raise ArgsError(
            f"mesh={type(mesh).__name__} was given: give a torch.distributed DeviceMesh, such as "
            "init_device_mesh(device_type, (number_of_ranks,))"
        )
    ranks, rank = tuple(int(r) for r in mesh.mesh.flatten()), dist.get_rank()
    if rank not in ranks:
        raise ArgsError(
            f"the mesh has ranks {', '.join(map(str, ranks))} and this process is rank {rank}: "
            "give each process a mesh that it is part of"
        )
    group = _own_group(ranks, rank)
    alone = Ranks(group, ranks, rank, (), WAIT_SECONDS)
    hosts = alone.agree("find which ranks share a host", _place())
    return Ranks(group, ranks, rank, tuple(hosts[r] for r in ranks), WAIT_SECONDS)


def group_of(ranks: tuple[int, ...], backend: str, seconds: float) -> Any:
    """A group of our own over `ranks`, the same one each time. Every rank of it must call this.

    One that is destroyed gives its name to the next, which would find its addresses in the store:
    so they are kept, and forgotten when they have failed or torch.distributed was started anew.
    """
    key, world = (ranks, backend, seconds), dist.group.WORLD
    if has_group(ranks, backend, seconds):
        return _groups[key][1]
    _even_out(ranks, seconds)
    group = dist.new_group(
        list(ranks),
        backend=backend,
        timeout=timedelta(seconds=seconds),
        use_local_synchronization=True,
    )
    _groups[key] = world, group
    return group


def has_group(ranks: tuple[int, ...], backend: str, seconds: float) -> bool:
    """Whether `group_of` would give one that is there already."""
    kept = _groups.get((ranks, backend, seconds))
    return kept is not None and kept[0] is dist.group.WORLD


def _even_out(ranks: tuple[int, ...], seconds: float) -> None:
    """As many groups in each process: torch names one by its ranks and by how many there are.

    Where a caller has given one rank a group more, they would wait for each other under two names.
    """
    _turns[ranks] += 1
    here, store = dist.get_rank(), c10d._get_default_store()
    names = {rank: f"blockswap/{ranks}/{_turns[ranks]}/{rank}" for rank in ranks}
    store.set(names[here], str(len(c10d._world.pg_names)))
    store.wait(list(names.values()), timedelta(seconds=seconds))
    counts = {rank: int(store.get(name)) for rank, name in names.items()}
    for _ in range(max(counts.values()) - counts[here]):
        dist.new_group([here], backend="gloo", use_local_synchronization=True)


def forget_group(group: Any) -> None:
    """A group on which a rank was missing is of no more use."""
    for key in [key for key, kept in _groups.items() if kept[1] is group]:
        del _groups[key]


def _own_group(ranks: tuple[int, ...], rank: int) -> Any:
    try:
        return group_of(ranks, "gloo", WAIT_SECONDS)
    except RuntimeError as error:
        raise _missing(rank, ranks, WAIT_SECONDS, "share weights") from error


def _exchange(ranks: Ranks, what: str, said: object) -> dict[int, Any]:
    told: list[Any] = [None] * len(ranks.ranks)
    try:
        dist.all_gather_object(told, said, group=ranks.group)
    except RuntimeError as error:
        forget_group(ranks.group)
        raise _missing(ranks.rank, ranks.ranks, ranks.wait_seconds, what) from error
    return dict(zip(ranks.ranks, told, strict=True))


def _missing(rank: int, ranks: tuple[int, ...], wait_seconds: float, what: str) -> StateError:
    missing = StateError(
        f"rank {rank} was to {what} with ranks {', '.join(map(str, ranks))}, and one of them ended "
        f"or did not come within {wait_seconds:g} s: see what that rank says, then start all of "
        "them again"
    )
    return _told(missing)


def _told(error: _Error) -> _Error:
    """The error, of which the other ranks know or cannot be told."""
    vars(error)[_TOLD] = True
    return error


def _sentence(error: Exception) -> str:
    if isinstance(error, BlockSwapError):
        return str(error)
    return f"{type(error).__name__} ({str(error).partition(chr(10))[0]})"


def _place() -> str:
    """What two processes have in common that can open each other's files in /proc."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    try:
        return f"{boot.read_text().strip()} {space.readlink()}"
    except OSError:
        return f"{socket.gethostname()} without /proc"
