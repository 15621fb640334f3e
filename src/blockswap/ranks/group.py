"""Who the ranks are, which share a host, and how they agree: all of them go on, or none does.

Everything that one rank tells the others goes through `Ranks.agree`, so that a failure of one is a
sentence on all of them and nobody waits for ever. Each names the step that it is at: ranks that do
not make the same calls find that out at the first step that differs. The group is one of our own
(gloo, on the host): what a forward's own collectives do is not disturbed, and no forward asks it.
"""

import contextlib
import os
import pickle
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import ArgsError, BlockSwapError, StateError
from .torch_groups import forget_group, group_of
from .waiting import wait_until

# A rank may still be loading a large model from a slow disk when the others are ready.
WAIT_SECONDS = 600.0
LOOK_SECONDS = 0.5  # how often a rank that waits looks whether the others are there

_TOLD = "blockswap_told"  # an attribute of errors: the other ranks know
_Error = TypeVar("_Error", bound=Exception)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of a mesh as one of them sees it; `ranks` are global numbers, ascending.

    A mesh may have them in another order; torch's groups have not, and what ranks say to each
    other, and the parts that they gather, come in the order of a group.

    `hosts[i]` says where rank i runs: ranks with the same value can map each other's memory, and
    see each other's processes, `processes[i]`.
    """

    group: Any
    ranks: tuple[int, ...]
    rank: int
    hosts: tuple[str, ...]
    wait_seconds: float
    processes: tuple[int, ...] = ()

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The ranks of this host, ascending."""
        here = self.hosts[self.ranks.index(self.rank)]
        return tuple(r for r, host in zip(self.ranks, self.hosts, strict=True) if host == here)

    def ended(self) -> list[int]:
        """The ranks of this host whose processes are no more."""
        if not self.processes:
            return []
        here = self.neighbours
        numbers = zip(self.ranks, self.processes, strict=True)
        return [rank for rank, number in numbers if rank in here and not process_runs(number)]

    def of_this_host(self) -> "Ranks":
        """The same without those of other hosts. Every rank of this host must call it."""
        here = self.neighbours
        if here == self.ranks:
            return self
        hosts = (self.hosts[self.ranks.index(self.rank)],) * len(here)
        own = tuple(self.processes[self.ranks.index(rank)] for rank in here)
        group = _own_group(here, self.rank)
        return replace(self, group=group, ranks=here, hosts=hosts, processes=own)

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
    ranks, rank = tuple(sorted(int(r) for r in mesh.mesh.flatten())), dist.get_rank()
    if rank not in ranks:
        raise ArgsError(
            f"the mesh has ranks {', '.join(map(str, ranks))} and this process is rank {rank}: "
            "give each process a mesh that it is part of"
        )
    group = _own_group(ranks, rank)
    alone = Ranks(group, ranks, rank, (), WAIT_SECONDS)
    told = alone.agree("find which ranks share a host", (_place(), os.getpid()))
    hosts, processes = zip(*(told[r] for r in ranks), strict=True)
    return Ranks(group, ranks, rank, hosts, WAIT_SECONDS, processes)


def _own_group(ranks: tuple[int, ...], rank: int) -> Any:
    try:
        return group_of(ranks, "gloo", WAIT_SECONDS)
    except RuntimeError as error:
        raise _missing(rank, ranks, WAIT_SECONDS, "share weights") from error


def _exchange(ranks: Ranks, what: str, said: object) -> dict[int, Any]:
    mine = bytearray(pickle.dumps(said))
    try:
        sizes = _gathered(ranks, bytearray(len(mine).to_bytes(8, "little")))
        most = max(int.from_bytes(size, "little") for size in sizes)
        told = [pickle.loads(given) for given in _gathered(ranks, mine.ljust(most, b"\0"))]
    except RuntimeError as error:
        forget_group(ranks.group)
        raise _missing(ranks.rank, ranks.ranks, ranks.wait_seconds, what) from error
    return dict(zip(ranks.ranks, told, strict=True))


def _gathered(ranks: Ranks, mine: bytearray) -> list[bytearray]:
    """What all say, as many bytes each. Raises RuntimeError where one does not.

    torch's own gather of objects cannot be interrupted (Ctrl-C) while a rank is missing, and gloo
    does not always see that a rank has ended: once in some hundred times it waits for all of its
    timeout. So this looks after the processes of this host itself.
    """
    told = [bytearray(len(mine)) for _ in ranks.ranks]
    own, others = _as_tensor(mine), [_as_tensor(one) for one in told]
    work: Any = dist.all_gather(others, own, group=ranks.group, async_op=True)

    def look() -> None:
        ended = ranks.ended()
        if ended and not work.is_completed():
            raise RuntimeError(f"rank {ended[0]} has ended")

    wait_until(work.is_completed, look=look, each=LOOK_SECONDS)
    work.wait()
    return told


def _as_tensor(memory: bytearray) -> torch.Tensor:
    return torch.frombuffer(memory, dtype=torch.uint8)


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


def process_runs(number: int) -> bool:
    """Whether the process is there and no mere entry that its parent has not taken back."""
    try:
        stat = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _place() -> str:
    """What two processes have in common that can open each other's files in /proc."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    try:
        return f"{boot.read_text().strip()} {space.readlink()}"
    except OSError:
        return f"{socket.gethostname()} without /proc"
