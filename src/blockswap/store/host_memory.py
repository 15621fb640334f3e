"""Host memory free, at most and in total (/proc/meminfo, container limits); the process's peak."""

import ctypes
import os
import sys
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_FIRST_MMAP_THRESHOLD = 128 * 1024  # where glibc begins
# (limit, usage) of the control group this process is in, as containers mount it: v2, then v1.
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def free_host_bytes() -> int | None:
    """Host memory that can be had without swapping, in bytes; None where the system hides it.

    A container's limit counts, its page cache as used: that errs on the safe side.
    """
    rooms = [room for room in (_available(), *(_group_room(*pair) for pair in _CGROUPS)) if room]
    return min(rooms, default=None)


def most_host_bytes() -> int | None:
    """The most that can be had at all, swap and the page cache of a container included.

    None where the system hides it. What needs more cannot run.
    """
    free = _meminfo("MemAvailable:")
    limits = [_group_limit(limit) for limit, _ in _CGROUPS]
    rooms = [None if free is None else free + (_meminfo("SwapFree:") or 0), *limits]
    return min((room for room in rooms if room is not None), default=None)


def total_host_bytes() -> int | None:
    """Host memory of this machine, or of the container it is limited to; None where not told."""
    limits = [_group_limit(limit) for limit, _ in _CGROUPS]
    return min((room for room in (_installed(), *limits) if room), default=None)


def peak_host_bytes() -> int | None:
    """Peak resident set size of this process in bytes; None where it is not told (Windows).

    Linux tells that of this program; `getrusage` that of whoever it was forked from, if larger.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_host_bytes() -> int | None:
    """Resident set size of this process now; its peak where only that is told."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return peak_host_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def return_freed_memory() -> None:
    """From now on, large allocations that this process frees go back to the system at once.

    glibc raises the size from which it maps allocations apart each time one is freed, up to 32 MiB,
    and keeps what lies below it in its heaps: a run's peak then differs by tens of MB from one run
    to the next. A size that is set is not raised (mallopt(3), M_MMAP_THRESHOLD). Nothing happens
    where the C library is another one.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _FIRST_MMAP_THRESHOLD)
    except (AttributeError, OSError, TypeError):  # not glibc; Windows
        return


def _installed() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _group_limit(limit: Path) -> int | None:
    try:
        allowed = int(limit.read_text())
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
    return allowed if allowed < 1 << 60 else None


def _available() -> int | None:
    return _meminfo("MemAvailable:")


def _meminfo(name: str) -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return None


def _group_room(limit: Path, usage: Path) -> int | None:
    try:
        allowed, used = int(limit.read_text()), int(usage.read_text())
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
    return max(0, allowed - used) if allowed < 1 << 60 else None
