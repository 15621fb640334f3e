"""A memory cgroup (v1) for a child process: the page cache counts, and overrun is a kill."""

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CONTROLLER = Path("/sys/fs/cgroup/memory")


@dataclass(frozen=True)
class MemoryGroup:
    """A cgroup; `folder` is its place in the controller's file system."""

    folder: Path

    def command(self, *command: str) -> list[str]:
        """`command` as a process that is a member before its first byte of Python is loaded."""
        return ["/bin/sh", "-c", f'echo $$ > {self.folder}/cgroup.procs; exec "$@"', "sh", *command]

    @property
    def usage_bytes(self) -> int:
        """All that is charged now, page cache and the kernel's rounding up per core included."""
        return self._number("memory.usage_in_bytes")

    @property
    def peak_bytes(self) -> int:
        return self._number("memory.max_usage_in_bytes")

    @property
    def times_at_limit(self) -> int:
        """How often something had to go, or to wait, because the limit was reached."""
        return self._number("memory.failcnt")

    @property
    def by_kind(self) -> dict[str, int]:
        """Bytes now: `anonymous`, `shared` and `page_cache`.

        Slots on the CPU are anonymous where the system has huge pages, else shared.
        """
        lines = (self.folder / "memory.stat").read_text().splitlines()
        stat = {name: int(value) for name, value in map(str.split, lines)}
        return {
            "anonymous": stat["rss"],
            "shared": stat["shmem"],
            "page_cache": stat["cache"] - stat["shmem"],
        }

    def _number(self, name: str) -> int:
        return int((self.folder / name).read_text())


def unavailable_reason() -> str | None:
    """Why no cgroup can be made here; None where one can."""
    if not (CONTROLLER / "memory.limit_in_bytes").exists():
        return "the memory controller of cgroup v1 is not mounted"
    if os.geteuid() != 0:
        return "only root makes memory cgroups"
    return None


def require_memory_groups() -> None:
    """Skips the test that calls it where no cgroup can be made; fails it in CI as root."""
    import pytest

    reason = unavailable_reason()
    if reason is not None and "CI" in os.environ and os.geteuid() == 0:
        pytest.fail(f"CI runs as root, and yet {reason}")
    if reason is not None:
        pytest.skip(reason)


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """A new cgroup of `limit_bytes`; its members must have ended when the block ends."""
    folder = CONTROLLER / f"blockswap-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield MemoryGroup(folder)
    finally:
        folder.rmdir()


def python(*arguments: object) -> list[str]:
    """The command that runs this interpreter."""
    return [sys.executable, *map(str, arguments)]
