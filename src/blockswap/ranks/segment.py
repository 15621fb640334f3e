"""Memory that the ranks of one host map: made by one, without a name that could be left behind.

A memory file (memfd_create) has no name in any folder: it is gone when the last process that maps
it ends, in whatever way. The others open it through /proc while its maker holds it open. Unlike
files in /dev/shm it has no size limit of its own in containers.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..errors import PlanError, StateError
from ..units import format_bytes
from .group import Ranks
from .waiting import wait_until

LOCK_SECONDS = 60.0  # a lock is held for microseconds


@dataclass(frozen=True, slots=True)
class Address:
    """Where another process of this host finds the segment: its maker and the file's number."""

    pid: int
    descriptor: int
    nbytes: int


class Segment:
    """Shared memory of `nbytes`. It lives as long as a tensor over it does."""

    def __init__(self, descriptor: int, nbytes: int) -> None:
        self._descriptor: int | None = descriptor
        self.address = Address(os.getpid(), descriptor, nbytes)
        self.mapped = mmap.mmap(descriptor, nbytes, flags=mmap.MAP_SHARED)

    @property
    def memory(self) -> torch.Tensor:
        """All of it as a tensor."""
        return torch.frombuffer(self.mapped, dtype=torch.uint8)

    @property
    def descriptor(self) -> int:
        """The file, to be locked, until it is no longer offered."""
        assert self._descriptor is not None, "asked for while it is offered"
        return self._descriptor

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process of the host at a time; a process that ends lets go of it.

        Raises StateError where another one keeps it, which only one that was stopped does.
        """
        descriptor = self.descriptor
        try:  # before it is locked: an interrupt between the two would leave it so
            _lock(descriptor)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def stop_offering(self) -> None:
        """From here on nobody else can map it; what is mapped stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int) -> None:
    if _locks(descriptor):  # nearly always
        return
    end = time.monotonic() + LOCK_SECONDS

    def locked() -> bool:
        if _locks(descriptor):
            return True
        if time.monotonic() > end:
            raise StateError(
                "what ranks of this host agree on in shared memory is locked by one of them "
                f"that has not gone on for {LOCK_SECONDS:g} s (stopped, or in a debugger): let "
                "it go on, or end it and start all of them again"
            )
        return False

    wait_until(locked)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def make_segment(nbytes: int, name: str = "weights") -> Segment:
    """A segment of `nbytes`, all zero, whose pages are taken when they are written.

    Raises StateError where the system has no such memory, PlanError where it is refused.
    """
    if not hasattr(os, "memfd_create"):
        raise StateError(
            "weights were to be shared by ranks of one host, and this system has no memory files "
            "(memfd_create, Linux): swap without mesh"
        )
    descriptor = os.memfd_create(f"blockswap {name}", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, nbytes)
        return Segment(descriptor, nbytes)
    except (OSError, ValueError, MemoryError) as error:
        os.close(descriptor)
        raise PlanError(
            f"{format_bytes(nbytes)} of shared host memory for the weights were refused by the "
            "system: close other programs, or swap without mesh"
        ) from error


def map_segment(address: Address, *, keep: bool = False) -> Segment:
    """The segment that another process made; its file stays open where `keep` says so.

    Raises StateError where it cannot be opened.
    """
    path = f"/proc/{address.pid}/fd/{address.descriptor}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise StateError(
            f"the weights of process {address.pid} on this host could not be shared "
            f"({error.strerror}): run all ranks as one user, in one container"
        ) from error
    try:
        segment = Segment(descriptor, address.nbytes)
    except (OSError, ValueError, MemoryError) as error:
        os.close(descriptor)
        raise PlanError(
            f"mapping {format_bytes(address.nbytes)} of shared weights was refused by the system: "
            "close other programs, or swap without mesh"
        ) from error
    if not keep:
        segment.stop_offering()
    return segment


def agreed_segment(ranks: Ranks, maker: int, nbytes: int) -> Segment:
    """A segment that all of `ranks` map, made by the `maker` of each host and offered no longer.

    Every one of them must call it.
    """
    made: Segment | None = None
    with ranks.together("make shared memory"):
        if ranks.rank == maker:
            made = make_segment(nbytes)
    told = ranks.agree("find the shared memory", made.address if made else None)
    with ranks.together("map the shared memory"):
        segment = made or map_segment(told[maker])
    segment.stop_offering()
    return segment
