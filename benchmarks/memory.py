"""The memory cgroup as the benchmarks use it: it lives beside the tests."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
try:
    from memory_group import MemoryGroup, memory_group, python, unavailable_reason
except ImportError:
    sys.path.append(str(TESTS))
    from memory_group import MemoryGroup, memory_group, python, unavailable_reason

__all__ = ["MemoryGroup", "memory_group", "python", "unavailable_reason"]
